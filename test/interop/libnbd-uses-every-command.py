"""Every command of libnbd against a server of 8 MiB zeroes; argv: socket, 1 for structured replies or 0 for simple ones."""
import errno
import sys
import nbd

socket, structured = sys.argv[1], sys.argv[2] == "1"
h = nbd.NBD()
h.set_request_structured_replies(structured)
h.set_export_name("disk")
if structured:
    h.add_meta_context("base:allocation")
# Wrong requests are to reach the server.
h.set_strict_mode(0)
h.connect_unix(socket)
assert h.get_structured_replies_negotiated() == structured
size = h.get_size()
assert size == 8 << 20, size
assert h.can_df() == structured
assert not h.can_cache()
assert h.can_fua() and h.can_flush() and h.can_trim() and h.can_zero() and h.can_fast_zero()

for length in (1, 511, 4096, 65536, 65537, 1 << 20, 5 << 20):
    data = bytes((i * 7 + length) & 255 for i in range(4096)) * (length // 4096 + 1)
    data = data[:length]
    h.pwrite(data, 3)
    assert h.pread(length, 3) == data, length
h.pwrite(b"\x55" * 65536, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 16384)
h.zero(512, 32768, nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 40960, nbd.CMD_FLAG_FUA)
h.flush()
got = h.pread(65536, 0)
assert got[:4096] == b"\x55" * 4096 and got[4096:8192] == bytes(4096)
assert got[16384:20480] == bytes(4096) and got[32768:33280] == bytes(512) and got[33280:40960] == b"\x55" * 7680


def fails(what, wanted):
    try:
        what()
    except nbd.Error as error:
        assert error.errnum == wanted, (error.errnum, wanted, str(error))
        return
    raise AssertionError("no error, expected %d" % wanted)


fails(lambda: h.pread(2, size - 1), errno.EINVAL)
fails(lambda: h.pwrite(b"xx", size - 1), errno.ENOSPC)
fails(lambda: h.zero(2, size - 1), errno.ENOSPC)
fails(lambda: h.trim(2, size - 1), errno.EINVAL)
fails(lambda: h.cache(512, 0), errno.EINVAL)
fails(lambda: h.pread(512, 0, 1 << 14), errno.EINVAL)
assert h.pread(4, 0) == b"\x55" * 4

if structured:
    chunks = []
    got = h.pread_structured(
        1 << 20, 4096, lambda data, offset, status, error: chunks.append((offset, len(data), status)), nbd.CMD_FLAG_DF
    )
    assert len(got) == 1 << 20
    assert chunks == [(4096, 1 << 20, nbd.READ_DATA)], chunks
    seen = {}
    h.block_status(1 << 20, 0, lambda context, offset, entries, error: seen.setdefault(context, list(entries)) and 0)
    assert set(seen) == {"base:allocation"}, seen
    # A server may stop early; it never says nothing.
    assert 0 < sum(seen["base:allocation"][::2]) <= 1 << 20, seen
    one = []
    h.block_status(4096, 0, lambda context, offset, entries, error: one.append(list(entries)) and 0, nbd.CMD_FLAG_REQ_ONE)
    assert all(len(entries) == 2 and entries[0] <= 4096 for entries in one), one
    fails(lambda: h.block_status(4096, size, lambda *a: 0), errno.EINVAL)

# Many requests in flight, answered in whatever order.
done = []
buffers = [nbd.Buffer.from_bytearray(bytearray([i & 255]) * 8192) for i in range(64)]
for i, buffer in enumerate(buffers):
    h.aio_pwrite(buffer, i * 8192, lambda error: done.append(error.value) or 1)
while len(done) < 64:
    h.poll(-1)
assert done == [0] * 64
for i in range(64):
    assert h.pread(8192, i * 8192) == bytes([i & 255]) * 8192
h.shutdown()

if structured:
    # pair.md 3: in an ordered session what follows a failed write fails, until the client connects again.
    for attempt in range(2):
        h = nbd.NBD()
        h.set_export_name("disk")
        h.add_meta_context("base:allocation")
        h.add_meta_context("blockstep:ordered")
        h.set_strict_mode(0)
        h.connect_unix(socket)
        seen = {}
        h.block_status(1 << 20, 0, lambda context, offset, entries, error: seen.setdefault(context, list(entries)) and 0)
        assert set(seen) == {"base:allocation", "blockstep:ordered"}, seen
        assert seen["blockstep:ordered"] == [1 << 20, 0]
        h.pwrite(b"x", 0)
        h.flush()
        fails(lambda: h.pwrite(b"xx", size - 1), errno.ENOSPC)
        fails(lambda: h.flush(), errno.EIO)
        fails(lambda: h.pwrite(b"x", 0), errno.EIO)
        h.shutdown()
print("good")

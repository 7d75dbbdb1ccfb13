"""Random writes, zeroes, discards, FUA and flushes, up to eight in flight; argv: URI, seed, count, and what
offsets and lengths are multiples of. Then all is read back and compared with what was written; what was discarded may
hold anything, and is not compared."""
import random
import sys
import nbd

uri = sys.argv[1]
seed, count, unit_min = map(int, sys.argv[2:])
rnd = random.Random(seed)
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(uri)
size = h.get_size()
model = bytearray(h.pread(size, 0))
known = bytearray(b"\x01") * size
under_way = {}


def ended(key):
    def done(error):
        assert error.value == 0, (key, error.value)
        del under_way[key]
        return 1

    return done


for step in range(count):
    unit = max(rnd.choice([1, 512, 4096]), unit_min)
    length = min(rnd.choice([1, 3, 8, 33, 128]) * unit, size)
    offset = rnd.randrange(0, (size - length) // unit + 1) * unit
    # Two that overlap and are under way at once have no order.
    while len(under_way) >= 8 or any(o < offset + length and offset < o + n for o, n in under_way.values()):
        h.poll(-1)
    kind = rnd.choice(["write"] * 5 + ["zero", "zero", "trim", "flush"])
    flags = nbd.CMD_FLAG_FUA if h.can_fua() and rnd.random() < 0.2 else 0
    span = slice(offset, offset + length)
    if kind == "write":
        data = bytearray(rnd.randbytes(length))
        model[span], known[span] = data, b"\x01" * length
        h.aio_pwrite(nbd.Buffer.from_bytearray(data), offset, ended(step), flags)
    elif kind == "zero" and h.can_zero():
        model[span], known[span] = bytes(length), b"\x01" * length
        more = nbd.CMD_FLAG_NO_HOLE if rnd.random() < 0.5 else 0
        h.aio_zero(length, offset, ended(step), flags | more)
    elif kind == "trim" and h.can_trim():
        known[span] = bytes(length)
        h.aio_trim(length, offset, ended(step), flags)
    else:
        offset, length = 0, 0
        h.aio_flush(ended(step))
    under_way[step] = (offset, length)
while under_way:
    h.poll(-1)
h.flush()
got = h.pread(size, 0)
for at in range(size):
    assert not known[at] or got[at] == model[at], (seed, at)
h.shutdown()
print("good")

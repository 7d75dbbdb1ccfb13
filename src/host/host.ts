/**
 * The seam between blockstep and the machine: files, network, clock, randomness.
 *
 * Everything above this folder asks a `Host` and never Node, so that a simulated host (`test/sim/`) can stand in for
 * all of it: it loses, tears and reorders what was not synced, answers at once or later at random, delays and cuts
 * links, and moves its clock when the test says so. What an implementation promises is said here and nowhere else.
 */
import type { Done } from '../util/later.ts';

export interface Host {
  readonly files: HostFiles;
  readonly network: HostNetwork;
  readonly clock: HostClock;
  readonly random: HostRandom;
  /** What tells one boot of the machine from the next: what was not synced before another boot may be gone. */
  readonly bootId: string;
}

// ---------------------------------------------------------------- files

export interface OpenHow {
  readonly access: 'read' | 'write';
  /** `never`: must exist; `if-missing`: made empty if it does not; `exclusive`: must not exist */
  readonly create?: 'never' | 'if-missing' | 'exclusive';
  /** bypass the page cache (O_DIRECT); buffers are then copied through aligned memory */
  readonly direct?: boolean;
  /** a block device only: open it for nobody else who claims it, a mount among them (O_EXCL); else `locked` */
  readonly claim?: boolean;
  /** no call blocks the caller, not even one that the page cache could answer: for a device known to be slow */
  readonly threads?: boolean;
}

export interface FileStat {
  readonly kind: 'file' | 'block' | 'folder' | 'other';
  /** bytes; of a block device its size */
  readonly size: number;
  /** bytes really taken on the disk */
  readonly allocated: number;
  readonly modifiedMs: number;
}

/** Paths are as Node takes them. All errors are `BlockError`s that name the path. */
export interface HostFiles {
  /** Opens a regular file or a block device. A folder, a socket, a pipe: `invalid-option`. */
  open(path: string, how: OpenHow): Promise<HostFile>;
  /** Null if nothing is there. */
  stat(path: string): Promise<FileStat | null>;
  /** The names in a folder; empty if there is no such folder. */
  list(path: string): Promise<string[]>;
  /** Makes the folder and its parents; durable when it returns. */
  makeFolder(path: string): Promise<void>;
  /** Removes a file; nothing happens if it is not there. Durable only after `syncFolder`. */
  remove(path: string): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  /** Bytes that may still be written in the file system that the folder is on; null: the system does not say. */
  freeBytes(folder: string): Promise<number | null>;
  /** Makes creations, renames and removals in the folder durable. */
  syncFolder(path: string): Promise<void>;
}

/**
 * An open file. Overlapping calls that are in flight together take effect in any order: the caller orders them (the
 * `file` driver's range lock). Written bytes are durable only after a `sync` that began after the write was done.
 */
export interface HostFile {
  readonly path: string;
  readonly kind: 'file' | 'block';
  /** What the system zeroes and discards is a multiple of this, bytes: the logical block of a device; 1 for a file. */
  readonly blockLength: number;
  /** How its calls are made now. */
  readonly io: FileIo;
  /** Bytes, asked of the system now (a file may grow or be cut by others). */
  size(): number;
  /** Fills all of `into` from `offset`; bytes past the end of the file read as zeroes. */
  read(offset: number, into: Uint8Array): Done;
  /**
   * Writes all of `from`, which is borrowed until done. ENOSPC and EIO come as errors; a short write never passes as
   * whole.
   */
  write(offset: number, from: Uint8Array): Done;
  /**
   * fdatasync: when it resolves, every write that was done before this call is durable. A failure is reported once by
   * the system: see `docs/failures.md`.
   */
  sync(): Promise<void>;
  /**
   * Forgets what the page cache holds of the file, so that reads tell what is on the disk: after a sync that failed the
   * cache may show writes that were lost. What is not written yet stays; where the system call is missing, all of it.
   */
  dropCache(): Promise<void>;
  /** Sets the length of a regular file. */
  truncate(size: number): Promise<void>;
  /**
   * The first data at or after `offset`, in bytes, `Infinity` if there is none; the first hole, where the file's end
   * counts as one. Null: this file cannot tell (then all of it counts as data); so it is with a device.
   */
  seekData(offset: number): number | null | Promise<number | null>;
  seekHole(offset: number): number | null | Promise<number | null>;
  /** Makes the range a hole that reads as zeroes. False: cannot be done here (write zeroes instead). */
  punchHole(offset: number, length: number): boolean | Promise<boolean>;
  /**
   * Makes the range read as zeroes and keeps the space allocated; a device may have to write them. False: cannot be
   * done here.
   */
  zeroRange(offset: number, length: number): boolean | Promise<boolean>;
  /**
   * Tells that the content of the range is not needed; what it reads afterwards is open. False: cannot be done here.
   */
  discard(offset: number, length: number): boolean | Promise<boolean>;
  /** Byte locks seen by other processes (spec: image-locking); null where the system call is missing. */
  readonly locks: HostFileLocks | null;
  /** Closes; locks are given back. Calling it twice does no harm. */
  close(): Promise<void>;
}

/** How the calls of a file are made. */
export interface FileIo {
  /** they are made on threads, because the file turned out slow or was opened so; else at once */
  readonly onThreads: boolean;
  /** for how long its oldest call on a thread, syncs included, has been under way, milliseconds; 0: there is none */
  readonly oldestMs: number;
}

/**
 * Open-file-description locks on single bytes (`fcntl(F_OFD_*)`). They do not conflict with locks of the same open
 * file.
 */
export interface HostFileLocks {
  /** Takes a shared lock on one byte. False: somebody else holds it exclusively. */
  share(byte: number): boolean;
  /** Takes an exclusive lock on one byte. False: somebody else holds a lock on it. */
  exclude(byte: number): boolean;
  release(byte: number): void;
  /** True if another open file holds any lock on the byte. */
  heldByOther(byte: number): boolean;
}

// ---------------------------------------------------------------- network

export type SocketAddress =
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'inet'; readonly host: string /** 0: the system chooses */; readonly port: number };

export interface HostNetwork {
  /**
   * Listens. A unix socket file left by a process that is gone is replaced; one that answers, and a TCP port that is
   * taken, is `address-in-use`.
   */
  listen(address: SocketAddress, accepted: (stream: HostStream) => void): Promise<HostListener>;
  /** Connects, or rejects with `connection-failed`, or `timed-out` after `timeoutMs` (default 5000). */
  connect(address: SocketAddress, timeoutMs?: number): Promise<HostStream>;
}

export interface HostListener {
  /** the address with the port that the system chose */
  readonly address: SocketAddress;
  /** Stops listening (streams that were accepted live on) and removes a unix socket's file. */
  close(): Promise<void>;
}

/** Where a stream puts what arrives. Never called after `ended`, nor again before the call before it has returned. */
export interface StreamReceiver {
  /** The room for the next bytes: never empty. Asked before each arrival; it may be the same memory each time. */
  space(): Uint8Array;
  /** `count` bytes now stand at the start of the last `space()`. */
  received(count: number): void;
  /**
   * The other side sends no more, and may still read. Where this is given the stream lives on until `end` is called;
   * else it ends by itself. A host that cannot tell the two ends apart calls `ended` alone.
   */
  inputEnded?(): void;
  /** The last call: the other side closed (`null`), or the connection broke (the error). Also after `destroy`. */
  ended(error: Error | null): void;
}

/** An ordered, reliable stream of bytes: a unix or TCP connection (no Nagle delay). */
export interface HostStream {
  /** Who is at the other end, for messages: `127.0.0.1:4711` or `unix`. */
  readonly peer: string;
  /** Begins delivery. What arrived before is delivered first. Called once. */
  start(receiver: StreamReceiver): void;
  /** No delivery until `resume`. Bytes may still arrive once, if the system had them. */
  pause(): void;
  resume(): void;
  /**
   * Sends. `undefined`: the bytes were taken, the buffer is the caller's again. A promise: the buffer is borrowed until
   * it resolves (the other side is slow: back-pressure); sends that follow keep their order. A broken stream drops what
   * it is given: the receiver's `ended` tells, and the promise resolves.
   */
  send(bytes: Uint8Array): Done;
  /** Sends what is pending, then closes. */
  end(): void;
  /** Closes at once. */
  destroy(): void;
}

// ---------------------------------------------------------------- clock and randomness

export interface HostTimer {
  cancel(): void;
}

export interface HostClock {
  /** Milliseconds of a clock that never goes back; only differences mean something. */
  now(): number;
  /** Wall time in milliseconds since 1970, for people and files. */
  wall(): number;
  /** Calls once, `ms` from now. A timer keeps no process alive. */
  after(ms: number, call: () => void): HostTimer;
  /**
   * Calls when the present turn of the event loop has been worked off: what was batched leaves then, in one system
   * call.
   */
  endOfTurn(call: () => void): void;
}

export interface HostRandom {
  /** `count` random bytes fit for ids and salts. */
  bytes(count: number): Uint8Array;
  /** 0 <= x < 1, for delays with jitter. */
  fraction(): number;
}

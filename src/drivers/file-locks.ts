/**
 * Byte locks that announce on an image what is done with it, in QEMU's places, so that its programs and ours keep out
 * of each other's way: byte 100+bit "I do this", byte 200+bit "others may not do this" (bits: `permissionBits`).
 *
 * Invariant: what is held is exactly what the last successful change asked for; a change that fails leaves it so.
 */
import { allPermissions, type Permission, type PermissionMask, permissionBits } from '../block/child.ts';
import type { Host, HostFile, HostFileLocks } from '../host/host.ts';
import { BlockError } from '../util/errors.ts';

const usedByte = 100;
const forbiddenByte = 200;

/** Two who come at once both lose; each tries again after a random time. */
const retryCount = 3;
const retryMsMin = 10;
const retryMsMax = 60;

export class ImageLocks {
  private readonly host: Host;
  private readonly path: string;
  private locks: HostFileLocks | null;
  private readonly off: boolean;
  private readonly exclusive: boolean;
  /** what is announced from the opening on, whatever users do */
  private readonly claimed: PermissionMask;
  private held = new Set<number>();

  /**
   * @param exclusive no other program may write. Opened to be written, it counts as written at once: of two who want it
   * so, and do not write yet, the second is refused
   * @throws BlockError `not-supported`: locking is on, and this host has no locks
   */
  constructor(host: Host, file: HostFile, locking: 'auto' | 'on' | 'off', exclusive: boolean, readOnly: boolean) {
    if (locking === 'on' && file.locks === null) {
      throw new BlockError('not-supported', `${file.path}: locking=on, but this machine has no byte locks`);
    }
    this.host = host;
    this.path = file.path;
    this.off = locking === 'off';
    this.locks = this.off ? null : file.locks;
    this.exclusive = exclusive;
    this.claimed = exclusive && !readOnly ? permissionBits.write : 0;
  }

  /** `locked`: others see it; `unlocked`: there are no locks here; `off`: not wanted */
  get state(): 'locked' | 'unlocked' | 'off' {
    if (this.off) return 'off';
    return this.locks === null ? 'unlocked' : 'locked';
  }

  /** Announces what is done and what is shared from now on. @throws BlockError `locked`, naming permission and file */
  async change(needs: PermissionMask, shares: PermissionMask): Promise<void> {
    if (this.locks === null) return;
    const forbids = (allPermissions & ~shares) | (this.exclusive ? permissionBits.write : 0);
    for (let attempt = 0; ; attempt += 1) {
      const refused = this.take(this.locks, needs | this.claimed, forbids);
      if (refused === null) return;
      if (attempt === retryCount) throw new BlockError('locked', `${this.path}: ${refused}`);
      const delayMs = retryMsMin + this.host.random.fraction() * (retryMsMax - retryMsMin);
      await new Promise<void>((resolve) => this.host.clock.after(delayMs, resolve));
    }
  }

  /**
   * Moves to another descriptor of the same file, without a moment in which nothing is held. Locks of two descriptors
   * conflict even within a process: so the new one takes them only now that every test has been made on the old one.
   */
  moveTo(file: HostFile): void {
    const old = this.locks;
    if (old === null) return;
    this.locks = file.locks;
    for (const byte of this.held) {
      this.locks?.share(byte);
      old.release(byte);
    }
  }

  /** One try: takes, tests, gives back what is not wanted any more. Returns why not, having changed nothing. */
  private take(locks: HostFileLocks, needs: PermissionMask, forbids: PermissionMask): string | null {
    const wanted = new Set([...bytesOf(usedByte, needs), ...bytesOf(forbiddenByte, forbids)]);
    const taken: number[] = [];
    let refused: string | null = null;
    for (const byte of wanted) {
      if (this.held.has(byte)) continue;
      if (locks.share(byte)) taken.push(byte);
      else refused = `byte ${byte} is locked by another program`;
    }
    for (const byte of taken) refused ??= conflict(locks, byte);
    if (refused !== null) {
      for (const byte of taken) locks.release(byte);
      return refused;
    }
    for (const byte of this.held) if (!wanted.has(byte)) locks.release(byte);
    this.held = wanted;
    return null;
  }
}

/** What another program has against a byte that was taken. */
function conflict(locks: HostFileLocks, byte: number): string | null {
  const use = byte < forbiddenByte;
  const bit = byte - (use ? usedByte : forbiddenByte);
  if (!locks.heldByOther(bit + (use ? forbiddenByte : usedByte))) return null;
  const name = (Object.keys(permissionBits) as Permission[]).find((each) => permissionBits[each] === 1 << bit);
  return use
    ? `another program (a VM, qemu-img, another daemon?) uses the image and does not allow '${name}'`
    : `another program (a VM, qemu-img, another daemon?) uses the image for '${name}', which is not to be shared`;
}

function bytesOf(base: number, mask: PermissionMask): number[] {
  return Object.values(permissionBits).flatMap((bit) => ((mask & bit) === 0 ? [] : [base + Math.log2(bit)]));
}

/**
 * The programs that interoperability tests need. A missing one is a failure that says what to install, never a skip.
 */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';

/** Which Debian package brings a program. */
const packageOf: Readonly<Record<string, string>> = {
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  'qemu-storage-daemon': 'qemu-system-common',
  'qemu-system-x86_64': 'qemu-system-x86',
  nbdinfo: 'libnbd-bin',
  nbdcopy: 'libnbd-bin',
  nbdkit: 'nbdkit',
  nbdfuse: 'libnbd-bin',
  losetup: 'mount',
  'mkfs.ext4': 'e2fsprogs',
  'nc.openbsd': 'netcat-openbsd',
  ip: 'iproute2',
  unshare: 'util-linux',
  fio: 'fio',
  'nbd-client': 'nbd-client',
  python3: 'python3-libnbd',
  gcc: 'gcc',
};

/** Throws one line that names the Debian packages of the programs that are not installed. */
export function requireTools(...names: string[]): void {
  const missing = names.filter((name) => !isInstalled(name));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((name) => packageOf[name] ?? name))];
  throw new Error(`${missing.join(', ')} missing: apt-get install ${packages.join(' ')}`);
}

function isInstalled(name: string): boolean {
  return (process.env.PATH ?? '').split(':').some((folder) => {
    try {
      accessSync(join(folder, name), constants.X_OK);
      return folder !== '';
    } catch {
      return false;
    }
  });
}

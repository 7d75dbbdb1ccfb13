'use strict';
/*
 * The programs of others that the tests and the benchmark talk to, by Debian package: which are missing, and how they
 * are got where that can be done without asking anybody. Old syntax: it runs on whatever Node the machine has.
 */
const childProcess = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

/** A Debian package, what shows that it is there, and what needs it (`test` needs no less than `bench`). */
const packages = [
  { name: 'qemu-utils', commands: ['qemu-img', 'qemu-io', 'qemu-nbd'], use: 'test' },
  { name: 'qemu-system-x86', commands: ['qemu-system-x86_64'], use: 'test' },
  { name: 'qemu-system-common', commands: ['qemu-storage-daemon'], use: 'test' },
  { name: 'libnbd-bin', commands: ['nbdinfo', 'nbdcopy', 'nbdfuse'], use: 'test' },
  { name: 'python3', commands: ['python3'], use: 'test' },
  { name: 'python3-libnbd', python: 'nbd', use: 'test' },
  { name: 'nbdkit', commands: ['nbdkit'], use: 'test' },
  { name: 'fio', commands: ['fio'], use: 'test' },
  { name: 'e2fsprogs', commands: ['mkfs.ext4'], use: 'test' },
  { name: 'mount', commands: ['losetup', 'mount'], use: 'test' },
  { name: 'util-linux', commands: ['unshare'], use: 'test' },
  { name: 'iproute2', commands: ['ip'], use: 'test' },
  { name: 'netcat-openbsd', commands: ['nc.openbsd'], use: 'test' },
  { name: 'gcc', commands: ['gcc'], use: 'bench' },
  { name: 'libc6-dev', file: '/usr/include/stdio.h', use: 'bench' },
];

function onPath(command) {
  const folders = (process.env.PATH || '').split(':').concat(['/usr/sbin', '/sbin']);
  return folders.some((folder) => folder !== '' && fs.existsSync(path.join(folder, command)));
}

function isThere(one) {
  if (one.file) return fs.existsSync(one.file);
  if (one.commands) return one.commands.every(onPath);
  return childProcess.spawnSync('/usr/bin/python3', ['-c', `import ${one.python}`], { stdio: 'ignore' }).status === 0;
}

/** Runs apt-get without questions; true if it went well. */
function apt(sudo, args) {
  const quiet = ['-q', '-y', '-o', 'DPkg::Lock::Timeout=120'];
  const line = ['env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', ...quiet, ...args];
  const whole = sudo ? ['sudo', '-n', ...line] : line;
  return childProcess.spawnSync(whole[0], whole.slice(1), { stdio: ['ignore', 'ignore', 'inherit'] }).status === 0;
}

/** Gets what is missing for `test` or `bench`. Gives null, or one line that says what a person should install. */
function getTools(use, say) {
  const missing = packages
    .filter((one) => (use === 'bench' || one.use === use) && !isThere(one))
    .map((one) => one.name);
  if (missing.length === 0) return null;
  const byHand = `real programs of others are needed; please install: apt-get install ${missing.join(' ')}`;
  const root = process.getuid() === 0;
  const sudo =
    !root && onPath('sudo') && childProcess.spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0;
  if (!onPath('apt-get') || !(root || sudo)) return byHand;
  say(`installing ${missing.join(' ')} (apt-get)`);
  // A fresh machine has no package lists, or old ones: an install that fails is tried again with new ones.
  const install = ['install', '--no-install-recommends', ...missing];
  return apt(sudo, install) || (apt(sudo, ['update']) && apt(sudo, install)) ? null : byHand;
}

module.exports = { getTools, packages };

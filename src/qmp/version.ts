/**
 * Which program this is, as QMP tells it. The version is that of package.json (a test holds this); the numbers under
 * `qemu` are those of the QEMU whose command shapes are followed, for clients that look at nothing else.
 */

export const programVersion = '0.1.0';

export const version = {
  qemu: { major: 7, minor: 2, micro: 0 },
  package: `blockstep ${programVersion}`,
} as const;

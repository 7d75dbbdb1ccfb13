/**
 * The types that several families of commands share, with QMP's spelling.
 */
import { z } from 'zod';

/** What a command gives back that has nothing to say: `{}` on the wire. */
export const nothing = z.void();
/** The arguments of a command that takes none. */
export const noArguments = z.strictObject({});

/** A member that QEMU has and this engine has not: refused by its name. */
export const leftOut = (why: string) =>
  z
    .custom<undefined>((value) => value === undefined, `is not supported: ${why}`)
    .optional()
    .describe(`refused: ${why}`);

/** A count of bytes. */
export const size = z.int().min(0);

/** Letters, digits, `-`, `.`, `_`, a letter first: what QEMU takes as an id. */
export const id = z
  .string()
  .max(255)
  .regex(/^[A-Za-z][A-Za-z0-9._-]*$/, 'must begin with a letter and hold only letters, digits, "-", "." and "_"')
  .describe('an id: a letter, then letters, digits, `-`, `.`, `_`');

/** The name of a block node. */
export const nodeName = z.string().min(1).max(255).describe('name of a block node');

const unixPath = z.string().min(1).max(107).describe('path of the socket, at most 107 bytes');
const tcpHost = z.string().min(1).max(255).describe('host name or address');
const tcpPort = z
  .string()
  .regex(/^\d{1,5}$/, 'must be a port number, as a string')
  .refine((port) => Number(port) <= 65535, 'must be at most 65535')
  .describe('port number as a string; `0`: the system chooses');

/** QEMU's SocketAddress: members beside `type`. */
export const socketAddress = z
  .discriminatedUnion('type', [
    z.strictObject({ type: z.literal('unix'), path: unixPath }),
    z.strictObject({ type: z.literal('inet'), host: tcpHost, port: tcpPort }),
  ])
  .meta({ id: 'SocketAddress' });

/** QEMU's SocketAddressLegacy: members under `data`. */
export const socketAddressLegacy = z
  .discriminatedUnion('type', [
    z.strictObject({ type: z.literal('unix'), data: z.strictObject({ path: unixPath }) }),
    z.strictObject({ type: z.literal('inet'), data: z.strictObject({ host: tcpHost, port: tcpPort }) }),
  ])
  .meta({ id: 'SocketAddressLegacy' });

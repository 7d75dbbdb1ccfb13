/**
 * The negotiation that a session begins with. It is the session's own and asks no target: one whose disk hangs is
 * answered late, and whoever wants to know why has to get past this first.
 */
import { BlockError } from '../util/errors.ts';
import { check } from './check.ts';
import { capabilities } from './schema/control.ts';

/** `qmp_capabilities`. @throws BlockError `invalid-option` */
export function negotiate(args: Readonly<Record<string, unknown>>): void {
  const { enable = [] } = check(capabilities.arguments, args, 'arguments');
  const [first] = enable;
  if (first === undefined) return;
  throw new BlockError('invalid-option', `arguments.enable: there is no capability "${first}"`);
}

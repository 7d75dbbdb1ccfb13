/**
 * A node's options as a line of text, the way of QEMU's command line: from `driver=raw,file.driver=file,...` or JSON to
 * what `blockdev-add` takes. The words of the dotted form become numbers and booleans by the driver's schema.
 */
import { commonSchema } from '../block/options.ts';
import type { DriverRegistry } from '../block/registry.ts';
import { fitStrings, parseKeyval } from '../qmp/keyval.ts';

/** @throws BlockError invalid-option, node-not-found (no such driver) */
export function parseBlockdev(text: string, drivers: DriverRegistry): Record<string, unknown> {
  const options = parseKeyval(text, 'driver');
  return text.startsWith('{') ? options : fitBlockdev(options, drivers);
}

/** Types for a node's options by the schema of its driver, and for those of the nodes described in place. */
function fitBlockdev(options: Record<string, unknown>, drivers: DriverRegistry): Record<string, unknown> {
  const { driver } = options;
  if (typeof driver !== 'string') return options;
  const fitted = fitStrings(commonSchema, fitStrings(drivers.find(driver).options, options));
  return mapMembers(fitted, (member) => fitBlockdev(member, drivers));
}

function mapMembers(
  options: Record<string, unknown>,
  change: (member: Record<string, unknown>) => Record<string, unknown>,
): Record<string, unknown> {
  const one = (member: unknown): unknown => {
    if (Array.isArray(member)) return member.map(one);
    return typeof member === 'object' && member !== null ? change(member as Record<string, unknown>) : member;
  };
  return Object.fromEntries(Object.entries(options).map(([name, member]) => [name, one(member)]));
}

/** Values as JSON has them. */

/** Do both say the same? Members of objects are in no order. */
export function sameJson(a: unknown, b: unknown): boolean {
  if (Object.is(a, b)) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const names = Object.keys(a);
  if (names.length !== Object.keys(b).length) return false;
  const other = b as Readonly<Record<string, unknown>>;
  return names.every((name) => Object.hasOwn(b, name) && sameJson((a as typeof other)[name], other[name]));
}

/** What a test must undo. Node runs `after` hooks in the order of their making; here the last comes first. */
import type { TestContext } from 'node:test';

/** A test, or anything else with an end (a suite's own `after`). */
export type Ending = Pick<TestContext, 'after'>;

const stacks = new WeakMap<Ending, (() => unknown)[]>();

/**
 * Calls after the test, before all that was registered earlier; an error of one does not keep the others from theirs.
 */
export function cleanup(t: Ending, call: () => unknown): void {
  const known = stacks.get(t);
  if (known !== undefined) {
    known.push(call);
    return;
  }
  const stack = [call];
  stacks.set(t, stack);
  t.after(async () => {
    const errors: unknown[] = [];
    for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
      try {
        await next();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw new AggregateError(errors, `cleaning up: ${errors.join('; ')}`);
  });
}

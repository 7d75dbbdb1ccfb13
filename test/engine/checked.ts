/** An engine for tests, whose every answer is checked against the schema that the reference is made from. */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import type { DriverDefinition } from '../../src/block/driver.ts';
import { drivers } from '../../src/drivers/index.ts';
import { Engine } from '../../src/engine/engine.ts';
import type { Host } from '../../src/host/host.ts';
import { createHost } from '../../src/host/index.ts';
import type { CommandDefinition } from '../../src/qmp/command.ts';
import { engineFamilies } from '../../src/qmp/schema.ts';
import type { QmpEvent } from '../../src/qmp/target.ts';

const definitions = new Map<string, CommandDefinition>(
  engineFamilies.flatMap(({ commands }) => commands.map((command) => [command.name, command])),
);

export interface CheckedEngine {
  readonly engine: Engine;
  readonly events: QmpEvent[];
  execute(command: string, args?: Record<string, unknown>): Promise<unknown>;
}

export function checkedEngine(
  t: TestContext,
  host: Host = createHost(),
  more: readonly DriverDefinition[] = [],
): CheckedEngine {
  const engine = new Engine(host, [...drivers, ...more]);
  const events: QmpEvent[] = [];
  const known = new Map(engineFamilies.flatMap((family) => family.events.map((event) => [event.name, event.data])));
  engine.subscribe((event) => {
    events.push(event);
    known.get(event.event)?.parse(event.data);
  });
  t.after(() => engine.close().catch(() => undefined));
  const execute = async (command: string, args: Record<string, unknown> = {}): Promise<unknown> => {
    const result = await engine.execute(command, args);
    const definition = definitions.get(command);
    assert.ok(definition !== undefined, `${command} is in no family`);
    const empty = typeof result === 'object' && result !== null && Object.keys(result).length === 0;
    definition.returns.parse(empty && definition.returns.safeParse(undefined).success ? undefined : result);
    return result;
  };
  return { engine, events, execute };
}

export const memoryNode = (name: string, size = 65536): Record<string, unknown> => ({
  driver: 'memory',
  'node-name': name,
  size,
});

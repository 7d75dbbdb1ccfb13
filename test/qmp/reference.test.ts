import assert from 'node:assert/strict';
import { glob, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { referencePath, renderReference } from '../../scripts/reference.ts';
import { drivers } from '../../src/drivers/index.ts';
import { engineFamilies, pairFamily } from '../../src/qmp/schema.ts';

test('docs/reference/qmp.md is what the schemas say (npm run docs writes it)', async () => {
  const written = (await readFile(referencePath, 'utf8')).split('\n');
  const rendered = renderReference().split('\n');
  const line = rendered.findIndex((text, index) => text !== written[index]);
  assert.ok(line < 0 && written.length === rendered.length, `npm run docs: line ${line + 1} differs`);
});

test('every command, event and driver has its heading', () => {
  const lines = new Set(renderReference().split('\n'));
  for (const { commands, events } of [...engineFamilies, pairFamily]) {
    for (const { name } of commands) assert.ok(lines.has(`### ${name}`), name);
    for (const { name } of events) assert.ok(lines.has(`### ${name} (event)`), name);
  }
  for (const { name } of drivers) assert.ok(lines.has(`### ${name}`), name);
});

test('every event that a source tells is in the reference', async () => {
  const known = new Set([...engineFamilies, pairFamily].flatMap(({ events }) => events.map(({ name }) => name)));
  const told = new Set<string>();
  const src = join(import.meta.dirname, '..', '..', 'src');
  for await (const path of glob('**/*.ts', { cwd: src })) {
    const text = await readFile(join(src, path), 'utf8');
    for (const [, name = ''] of text.matchAll(/\bemit\(\s*'([A-Z_]+)'/g)) told.add(name);
  }
  assert.ok(told.size > 15, [...told].join(' '));
  assert.deepEqual(
    [...told].filter((name) => !known.has(name)),
    [],
  );
});

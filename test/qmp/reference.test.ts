import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
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

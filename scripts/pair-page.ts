/**
 * Writes docs/reference/pair.md from the supervisor's own table: its phases, and what each event does in them.
 * `npm run docs` runs it; a test holds that the page is what it would write.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pairRows } from '../src/pair/pair.ts';
import { type Phase, phases } from '../src/pair/pair-state.ts';

export const pairPagePath = fileURLToPath(new URL('../docs/reference/pair.md', import.meta.url));

const introduction = `# The supervisor of a pair

Made from the source by \`npm run docs\`. The supervisor is a pure function: a state and an event give a new state and
the steps to be done (\`src/pair/pair.ts\`); runners do them over QMP. What is in no row changes nothing. Why each rule
is there is told in [failures](../failures.md) and in the comments of the rows.`;

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

export function renderPairPage(): string {
  const names = Object.keys(phases) as Phase[];
  const meanings = names.map((name) => `| \`${name}\` | ${cell(phases[name])} |`);
  const rows = pairRows.map((row) => {
    const where = row.in.length === names.length ? 'any' : row.in.map((name) => `\`${name}\``).join(', ');
    return `| ${where} | ${row.on.join(', ')} | ${cell(row.to)} | ${cell(row.does)} |`;
  });
  return [
    introduction,
    '## Phases',
    ['| phase | means |', '|---|---|', ...meanings].join('\n'),
    '## Events',
    ['| in phase | on | then | does |', '|---|---|---|---|', ...rows].join('\n'),
    '',
  ].join('\n\n');
}

if (import.meta.main) {
  mkdirSync(dirname(pairPagePath), { recursive: true });
  writeFileSync(pairPagePath, renderPairPage());
}

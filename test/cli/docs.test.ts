/** The pages that are made from the source are what the source says now, and no page links to nothing. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { test } from 'node:test';
import { pairPagePath, renderPairPage } from '../../scripts/pair-page.ts';

const root = join(import.meta.dirname, '..', '..');

test('the page of the supervisor is its table as it is now (npm run docs)', () => {
  assert.equal(readFileSync(pairPagePath, 'utf8'), renderPairPage());
});

test('every link between the pages leads somewhere', () => {
  const folders = ['.', 'docs', 'docs/howto', 'docs/reference'].map((name) => join(root, name));
  const pages = folders.flatMap((folder) => readdirSync(folder).map((name) => join(folder, name)));
  let links = 0;
  for (const page of pages.filter((name) => name.endsWith('.md'))) {
    for (const [, target] of readFileSync(page, 'utf8').matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) {
      links += 1;
      assert(existsSync(resolve(dirname(page), target ?? '')), `${page} links to ${target}`);
    }
  }
  assert(links > 10);
});

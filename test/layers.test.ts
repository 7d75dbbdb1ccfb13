/**
 * The house keeps its order: who may import whom, who may touch the machine, and the few habits that no linter holds.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { test } from 'node:test';

const root = join(import.meta.dirname, '..');

/** From the bottom up: a folder imports only folders of lines above its own. */
const house = [
  ['util'],
  ['host'],
  ['nbd', 'qcow2', 'qmp'],
  ['block'],
  ['jobs'],
  ['drivers'],
  ['engine'],
  ['pair'],
  ['http'],
  ['cli'],
];

/** More than this and a file no longer holds one idea. */
const fileLinesMax = 450;
const lineColumnsMax = 120;

interface Source {
  /** from the root, with `/` */
  readonly path: string;
  readonly text: string;
}

function sources(folder: string): Source[] {
  return readdirSync(join(root, folder), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && /\.(ts|cjs)$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name))
    .map((file) => ({ path: relative(root, file), text: readFileSync(file, 'utf8') }));
}

function importsOf(source: Source): string[] {
  const found = source.text.matchAll(
    /^\s*(?:import|export)\s[^'";]*?from\s+'([^']+)'|^import\s+'([^']+)'|\bimport\('([^']+)'\)/gm,
  );
  return [...found].map((match) => match[1] ?? match[2] ?? match[3] ?? '');
}

/** The text without comments and strings, so that words in them are not taken for code. */
function codeOf(source: Source): string {
  return source.text
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/(^|\s)\/\/.*$/gm, '')
    .replace(/'(?:[^'\\\n]|\\.)*'/g, "''");
}

function folderOf(path: string): string {
  return path.split('/')[1] ?? '';
}

const src = sources('src');

function complaints(check: (source: Source) => string[], of: readonly Source[] = src): string[] {
  assert.notEqual(of.length, 0);
  return of.flatMap((source) => check(source).map((line) => `${source.path}: ${line}`));
}

test('a folder imports only folders above it in the house', () => {
  const rank = (folder: string): number => house.findIndex((row) => row.includes(folder));
  const wrong = complaints((source) => {
    if (source.path === 'src/index.ts') return [];
    const own = folderOf(source.path);
    if (rank(own) < 0) return [`${own} is no folder of the house`];
    return importsOf(source)
      .filter((name) => name.startsWith('.'))
      .map((name) => relative(root, resolve(root, dirname(source.path), name)))
      .filter((target) => folderOf(target) !== own && rank(folderOf(target)) >= rank(own))
      .map((target) => `imports ${target}`);
  });
  assert.deepEqual(wrong, []);
});

test('only src/host (and the program, src/cli) imports Node modules', () => {
  const wrong = complaints((source) => {
    if (['host', 'cli'].includes(folderOf(source.path))) return [];
    return importsOf(source)
      .filter((name) => name.startsWith('node:'))
      .map((name) => `imports ${name}`);
  });
  assert.deepEqual(wrong, []);
});

test('only src/host (and src/cli) touches time, randomness and the process', () => {
  const forbidden =
    /\b(?:Date\.now|new Date\(\)|performance\.|setTimeout|setInterval|setImmediate|Math\.random|crypto\.|process\.)/g;
  const wrong = complaints((source) => {
    if (['host', 'cli'].includes(folderOf(source.path))) return [];
    return [...codeOf(source).matchAll(forbidden)].map((match) => `uses ${match[0]}`);
  });
  assert.deepEqual(wrong, []);
});

test('only src/cli builds a real host', () => {
  const wrong = complaints((source) => {
    if (['host', 'cli'].includes(folderOf(source.path)) || source.path === 'src/index.ts') return [];
    return /\bcreateHost\b/.test(codeOf(source)) ? ['names createHost'] : [];
  });
  assert.deepEqual(wrong, []);
});

test('a driver is imported by drivers/index.ts alone', () => {
  const drivers = src.filter((source) => folderOf(source.path) === 'drivers');
  const isDriver = new Set(drivers.filter((one) => /\bdefineDriver\(/.test(codeOf(one))).map((one) => one.path));
  const wrong = complaints((source) => {
    if (source.path === 'src/drivers/index.ts') return [];
    return importsOf(source)
      .filter((name) => name.startsWith('.'))
      .map((name) => relative(root, resolve(root, dirname(source.path), name)))
      .filter((target) => isDriver.has(target))
      .map((target) => `imports the driver ${target}`);
  });
  assert.deepEqual(wrong, []);
});

const everything = ['src', 'test', 'bench', 'scripts', 'bin'].flatMap(sources);

test('files and lines keep their size, and open with what they are', () => {
  const wrong = complaints((source) => {
    const lines = source.text.split('\n');
    const found: string[] = [];
    if (lines.length > fileLinesMax) found.push(`${lines.length} lines, ${fileLinesMax} at most`);
    for (const [index, line] of lines.entries()) {
      // The name of a test is its claim, and stands in one line.
      if (line.length > lineColumnsMax && !/^\s*test\(/.test(line))
        found.push(`line ${index + 1} has ${line.length} columns, ${lineColumnsMax} at most`);
    }
    const opens = /^(#!.*\n)?('use strict';\n)?\/\*/.test(source.text);
    // A test file's name may say enough.
    if (!opens && !source.path.endsWith('.test.ts')) found.push('opens without a comment that says what it is');
    return found;
  }, everything);
  assert.deepEqual(wrong, []);
});

test('file names are kebab-case', () => {
  const wrong = complaints(
    (source) =>
      /^[a-z0-9]+(-[a-z0-9]+)*(\.(test|[a-z]))?\.(ts|cjs)$/.test(source.path.split('/').at(-1) ?? '') ? [] : ['name'],
    everything,
  );
  assert.deepEqual(wrong, []);
});

test('no test is skipped, no work is left for later', () => {
  // Spelled so that this file does not find itself.
  const words = new RegExp(
    `\\b(${['TO', 'FIX', 'XX'].map((start, index) => start + ['DO', 'ME', 'X'][index]).join('|')})\\b`,
  );
  const skipped = /\b(?:test|it|describe)\.(?:skip|todo|only)\b|\bskip: *true/;
  const wrong = complaints((source) => {
    const found: string[] = [];
    if (words.test(source.text)) found.push(`says ${words.exec(source.text)?.[0]}`);
    if (source.path !== 'test/layers.test.ts' && skipped.test(source.text)) found.push('skips a test');
    return found;
  }, everything);
  assert.deepEqual(wrong, []);
});

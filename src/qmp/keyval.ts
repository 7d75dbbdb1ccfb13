/**
 * Options of the command line: `driver=file,node-name=a,server.type=unix,children.0=b` or JSON, to the object that the
 * same command takes over QMP (QEMU's "keyval" options).
 *
 * All leaves of the dotted form are strings. `fitStrings` turns those into numbers and booleans that a schema wants
 * there, and only those: it asks the schema what it minds, converts that, and asks again. So there is one schema for
 * both doors, and no second list of types.
 */
import type { z } from 'zod';
import { BlockError } from '../util/errors.ts';

type Options = Record<string, unknown>;

/** keys of one option string */
const keysMax = 1024;
/** parts of one key, entries of one list */
const partsMax = 64;

/**
 * @param implied the key that a first word without `=` stands for: `--export nbd,...` means `type=nbd`
 * @throws BlockError invalid-option, naming the key
 */
export function parseKeyval(text: string, implied?: string): Options {
  if (text.startsWith('{')) return parseJson(text);
  const root: Options = Object.create(null);
  const words = splitWords(text);
  if (words.length > keysMax) throw invalid(`more than ${keysMax} options in one argument`);
  words.forEach((word, index) => {
    const equals = word.indexOf('=');
    if (equals > 0) put(root, word.slice(0, equals), word.slice(equals + 1));
    else if (index === 0 && implied !== undefined && equals < 0 && word !== '') put(root, implied, word);
    else throw invalid(`"${word}": expected key=value`);
  });
  return listsOf(root, '') as Options;
}

function parseJson(text: string): Options {
  try {
    return JSON.parse(text) as Options;
  } catch (error) {
    throw invalid(`not valid JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/** Splits at commas; a doubled comma is a comma. */
function splitWords(text: string): string[] {
  const words: string[] = [];
  let word = '';
  for (let at = 0; at < text.length; at += 1) {
    const character = text.charAt(at);
    if (character !== ',') {
      word += character;
    } else if (text.charAt(at + 1) === ',') {
      word += ',';
      at += 1;
    } else {
      words.push(word);
      word = '';
    }
  }
  if (word !== '' || words.length === 0) words.push(word);
  return words;
}

const keyPart = /^([A-Za-z_][A-Za-z0-9_-]*|\d{1,4})$/;

function put(root: Options, key: string, value: string): void {
  const parts = key.split('.');
  if (parts.length > partsMax || !parts.every((part) => keyPart.test(part) && part !== '__proto__')) {
    throw invalid(`"${key}": not a valid option name`);
  }
  const last = parts.pop() ?? '';
  let at = root;
  for (const part of parts) {
    const next = at[part];
    if (typeof next === 'string') throw invalid(`"${key}": "${part}" is given a value and members as well`);
    at = next === undefined ? child(at, part) : (next as Options);
  }
  if (typeof at[last] === 'object') throw invalid(`"${key}": is given a value and members as well`);
  at[last] = value;
}

function child(at: Options, part: string): Options {
  const made: Options = Object.create(null);
  at[part] = made;
  return made;
}

/** Objects whose keys are all numbers are lists. */
function listsOf(value: unknown, path: string): unknown {
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value);
  const numbered = entries.filter(([key]) => /^\d+$/.test(key)).length;
  if (numbered === 0)
    return Object.fromEntries(entries.map(([key, member]) => [key, listsOf(member, `${path}${key}.`)]));
  const list = entries.map((_, index) => {
    const member = (value as Options)[String(index)];
    if (member === undefined) throw invalid(`"${path}${index}": a list has no gaps and no other members`);
    return listsOf(member, `${path}${index}.`);
  });
  return list;
}

type Issue = z.core.$ZodIssue;

/**
 * A copy of `value` in which strings stand as numbers and booleans where `schema` wants those. What does not fit is
 * left as it is: the check that follows names it.
 */
export function fitStrings<Value>(schema: z.ZodType, value: Value): Value {
  const fitted = structuredClone(value);
  // Each round converts at least one leaf, and there are at most `keysMax`.
  for (let round = 0; round < keysMax; round += 1) {
    const result = schema.safeParse(fitted);
    if (result.success || !fitIssues(result.error.issues, [], fitted)) return fitted;
  }
  return fitted;
}

/** Converts what the issues complain of; true if anything was. */
function fitIssues(issues: readonly Issue[], path: readonly PropertyKey[], root: unknown): boolean {
  let changed = false;
  for (const issue of issues) {
    const at = [...path, ...issue.path];
    if (issue.code === 'invalid_union') {
      // Only one branch may have its way: the first whose complaints can be met.
      if (issue.errors.some((branch) => fitIssues(branch, at, root))) changed = true;
    } else if (issue.code === 'invalid_type' && fitLeaf(root, at, issue.expected)) {
      changed = true;
    } else if (issue.code === 'invalid_value' && fitLeaf(root, at, typeof issue.values[0])) {
      changed = true;
    }
  }
  return changed;
}

function fitLeaf(root: unknown, path: readonly PropertyKey[], expected: string): boolean {
  let holder = root;
  for (const step of path.slice(0, -1)) holder = (holder as Record<PropertyKey, unknown> | undefined)?.[step];
  const key = path.at(-1);
  if (key === undefined || typeof holder !== 'object' || holder === null) return false;
  const text = (holder as Record<PropertyKey, unknown>)[key];
  if (typeof text !== 'string') return false;
  const converted = convert(text, expected);
  if (converted === undefined) return false;
  (holder as Record<PropertyKey, unknown>)[key] = converted;
  return true;
}

const booleans: Record<string, boolean> = {
  on: true,
  yes: true,
  true: true,
  y: true,
  off: false,
  no: false,
  false: false,
  n: false,
};

function convert(text: string, expected: string): unknown {
  if (expected === 'boolean') return Object.hasOwn(booleans, text) ? booleans[text] : undefined;
  if (expected === 'number' || expected === 'int') return parseSize(text);
  if (expected === 'null') return text === '' ? null : undefined;
  return undefined;
}

const suffixes = 'BKMGTPE';

/** A number as QEMU writes sizes: `4096`, `0x1000`, `64k`, `1.5G` (powers of 1024). Undefined: it is none. */
export function parseSize(text: string): number | undefined {
  if (/^0x[0-9a-f]{1,14}$/i.test(text)) return Number(text);
  const match = /^(\d{1,16})(\.\d{1,15})?([bkmgtpe])?$/i.exec(text);
  if (match === null) return undefined;
  const [, whole, fraction = '', suffix = 'B'] = match;
  if (fraction !== '' && match[3] === undefined) return undefined;
  const bytes = Number(`${whole}${fraction}`) * 1024 ** suffixes.indexOf(suffix.toUpperCase());
  return Number.isSafeInteger(Math.round(bytes)) ? Math.round(bytes) : undefined;
}

function invalid(message: string): BlockError {
  return new BlockError('invalid-option', message);
}

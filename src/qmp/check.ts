/**
 * Checks a value against a schema and says in one line which field is wrong: `arguments.addr.data.port: expected a
 * string, got a number`. Every message of a wrong argument, option or configuration value is made here.
 */
import { z } from 'zod';
import { BlockError } from '../util/errors.ts';

// Most schemas check a handful of values in the life of a process: compiling a checker takes longer than all of that,
// and in the middle of a failover somebody waits for it.
z.config({ jitless: true });

type Issue = z.core.$ZodIssue;

/**
 * The checked value.
 * @param root how the value itself is called, put before the path of a field: `arguments`
 * @throws BlockError invalid-option
 */
export function check<Schema extends z.ZodType>(schema: Schema, value: unknown, root: string): z.output<Schema> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw new BlockError('invalid-option', describeIssues(result.error.issues, root, value));
}

/** One line about the first thing that is wrong; a member that is not known comes first: it may be the missing one. */
export function describeIssues(issues: readonly Issue[], root: string, value: unknown): string {
  const issue = issues.find(({ code }) => code === 'unrecognized_keys') ?? issues[0];
  return issue === undefined ? `${root}: is not valid` : describeIssue(issue, root, value);
}

function describeIssue(issue: Issue, root: string, value: unknown): string {
  const field = fieldName(root, issue.path) || 'options';
  const got = valueAt(value, issue.path);
  switch (issue.code) {
    case 'unrecognized_keys':
      return `${fieldName(fieldName(root, issue.path), issue.keys.slice(0, 1))}: is unexpected`;
    case 'invalid_type':
      if (got === undefined && issue.path.length > 0) return `${field}: is missing`;
      return `${field}: expected ${kindName(issue.expected)}, got ${describeValue(got)}`;
    case 'invalid_value':
      if (got === undefined && issue.path.length > 0) return `${field}: is missing`;
      return `${field}: expected ${listOf(issue.values.map(String))}, got ${describeValue(got)}`;
    case 'invalid_union': {
      const branch = closestBranch(issue.errors);
      if (branch !== undefined) return describeIssue(branch, fieldName(root, issue.path), got);
      if (got === undefined && issue.path.length > 0) return `${field}: is missing`;
      return `${field}: ${unionText(issue)}, got ${describeValue(got)}`;
    }
    case 'too_small':
      return `${field}: must be at least ${issue.minimum}${unitOf(issue.origin)}`;
    case 'too_big':
      return `${field}: must be at most ${issue.maximum}${unitOf(issue.origin)}`;
    default:
      return `${field}: ${issue.message}`;
  }
}

/** What a union expects: the values of its discriminator where it has one. */
function unionText(issue: z.core.$ZodIssueInvalidUnion): string {
  const options: unknown = 'options' in issue ? issue.options : undefined;
  return Array.isArray(options) ? `expected ${listOf(options.map(String))}` : issue.message;
}

/** Of a union's branches the one that the value came closest to: its first fault lies deepest. */
function closestBranch(branches: readonly (readonly Issue[])[]): Issue | undefined {
  let best: Issue | undefined;
  for (const [issue] of branches) {
    if (issue === undefined) continue;
    if (best === undefined || depthOf(issue) > depthOf(best)) best = issue;
  }
  return best;
}

function depthOf(issue: Issue): number {
  return issue.path.length + (issue.code === 'unrecognized_keys' ? 1 : 0);
}

function fieldName(root: string, path: readonly PropertyKey[]): string {
  let name = root;
  for (const step of path) name = name === '' ? String(step) : `${name}.${String(step)}`;
  return name;
}

function valueAt(value: unknown, path: readonly PropertyKey[]): unknown {
  let at = value;
  for (const step of path) {
    if (typeof at !== 'object' || at === null || !Object.hasOwn(at, step)) return undefined;
    at = (at as Record<PropertyKey, unknown>)[step];
  }
  return at;
}

/** characters of a wrong value that a message repeats */
const shownMax = 60;

function describeValue(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'an object';
  const text = typeof value === 'string' ? JSON.stringify(value) : String(value);
  return text.length <= shownMax ? text : `${text.slice(0, shownMax)}...`;
}

const kindNames: Record<string, string> = {
  int: 'an integer',
  number: 'a number',
  string: 'a string',
  boolean: 'true or false',
  object: 'an object',
  array: 'a list',
  record: 'an object',
  null: 'null',
};

function kindName(expected: string): string {
  return kindNames[expected] ?? expected;
}

function listOf(words: readonly string[]): string {
  return words.length === 1 ? `${words[0]}` : `one of ${words.join(', ')}`;
}

function unitOf(origin: string): string {
  if (origin === 'string') return ' characters long';
  if (origin === 'array' || origin === 'set') return ' entries long';
  return '';
}

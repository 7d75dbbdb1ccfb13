/**
 * Writes docs/reference/qmp.md from the schemas: commands, events, types, the options of every driver, error codes.
 * `npm run docs` runs it; a test holds that the page is what it would write.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { z } from 'zod';
import { commonSchema } from '../src/block/options.ts';
import { drivers } from '../src/drivers/index.ts';
import type { CommandDefinition, EventDefinition } from '../src/qmp/command.ts';
import { type CommandFamily, engineFamilies, pairFamily } from '../src/qmp/schema.ts';
import { blockErrorKinds, errnoNumbers } from '../src/util/errors.ts';

export const referencePath = fileURLToPath(new URL('../docs/reference/qmp.md', import.meta.url));

type Json = z.core.JSONSchema.BaseSchema;

/** The named types that were met on the way, by name. */
type Types = Map<string, Json>;

export function renderReference(): string {
  const types: Types = new Map();
  const families = [...engineFamilies, pairFamily];
  const parts = [
    introduction,
    ...families.map((family) => renderFamily(family, types)),
    renderDrivers(types),
    renderTypes(types),
    renderErrors(),
  ];
  return `${parts.join('\n\n')}\n`;
}

const introduction = `# QMP reference

Made by \`npm run docs\` from the schemas that check every command; do not edit it by hand.

A client connects to the QMP socket, reads the greeting, gives \`qmp_capabilities\`, then commands. A message is a JSON
object; no newline is needed. Members and commands that QEMU has are as in QEMU; those that it has not say *ours*, or
stand in the families *Replication* and *The pair*.

\`\`\`
<- {"QMP": {"version": {...}, "capabilities": []}}
-> {"execute": "qmp_capabilities"}
<- {"return": {}}
-> {"execute": "query-named-block-nodes", "arguments": {}, "id": 1}
<- {"return": [...], "id": 1}
<- {"event": "JOB_STATUS_CHANGE", "data": {...}, "timestamp": {"seconds": 1, "microseconds": 2}}
<- {"error": {"class": "GenericError", "desc": "arguments.addr.data.port: expected a string, got 10809"}, "id": 2}
\`\`\`

An error also has the member \`__blockstep_code\`: one of the [error codes](#error-codes). A member that a command does
not know is an error. Sizes and offsets are bytes, whole numbers up to 2^53-1.

Of QEMU's commands about disks these are left out, and get the class \`CommandNotFound\`: \`query-qmp-schema\` (this
page is what there is), \`transaction\`, the commands of dirty bitmaps, snapshots and \`block-stream\`,
\`blockdev-create\`, \`object-add\` (no TLS, secrets, iothreads or throttle groups), \`drive-backup\`,
\`block_set_io_throttle\`, and all that is about a machine. There are no out-of-band commands. Exports are NBD only.
Members of a command that are left out stand in its table as *refused*.`;

function renderFamily(family: CommandFamily, types: Types): string {
  const commands = family.commands.map((command) => renderCommand(command, types));
  const events = family.events.map((event) => renderEvent(event, types));
  return [`## ${family.title}`, ...commands, ...events].join('\n\n');
}

function renderCommand({ name, summary, arguments: args, returns }: CommandDefinition, types: Types): string {
  const parts = [`### ${name}`, summary, members(schemaOf(args, types))];
  if (!returns.safeParse(undefined).success) {
    const result = schemaOf(returns, types);
    if (result.type === 'object') parts.push('Returns an object:', members(result));
    else parts.push(`Returns ${typeText(result)}.`);
  }
  return parts.filter((part) => part !== '').join('\n\n');
}

function renderEvent({ name, summary, data }: EventDefinition, types: Types): string {
  return [`### ${name} (event)`, summary, members(schemaOf(data, types))].filter((part) => part !== '').join('\n\n');
}

function renderDrivers(types: Types): string {
  const common = schemaOf(commonSchema, types);
  const sorted = [...drivers].sort((a, b) => a.name.localeCompare(b.name, 'en'));
  return [
    '## Drivers',
    'What `blockdev-add` and `--blockdev` take for each driver.',
    '### Every driver',
    members(common),
    ...sorted.flatMap(({ name, summary, isFilter, options }) => [
      `### ${name}`,
      `${summary}${isFilter === true ? ' (a filter)' : ''}`,
      members(schemaOf(options, types)),
    ]),
  ]
    .filter((part) => part !== '')
    .join('\n\n');
}

function renderTypes(types: Types): string {
  const names = [...types.keys()].sort((a, b) => a.localeCompare(b, 'en'));
  return ['## Types', ...names.flatMap((name) => [`### ${name}`, renderType(types.get(name) ?? {})])].join('\n\n');
}

function renderType(schema: Json): string {
  const variants = schema.oneOf ?? schema.anyOf;
  if (variants !== undefined) return variants.map((variant) => members(variant as Json)).join('\n\nor\n\n');
  return schema.type === 'object' ? members(schema) : `${typeText(schema)}.`;
}

function renderErrors(): string {
  const rows = Object.entries(blockErrorKinds).map(
    ([code, { errno, qmpClass }]) => `| \`${code}\` | ${qmpClass} | ${errno} (${errnoNumbers[errno]}) |`,
  );
  const text = 'The errno is what an NBD client or an exit message sees where the error says nothing more exact.';
  return ['## Error codes', text, ['| code | class | errno |', '| --- | --- | --- |', ...rows].join('\n')].join('\n\n');
}

/** The schema as JSON Schema; named types in it go to `types`. */
function schemaOf(schema: z.ZodType, types: Types): Json {
  const converted = z.toJSONSchema(schema, { unrepresentable: 'any', io: 'input' }) as Json;
  for (const [name, type] of Object.entries(converted.$defs ?? {})) types.set(name, type as Json);
  const { $ref: reference } = converted;
  return reference === undefined ? converted : (converted.$defs?.[nameOf(reference)] as Json);
}

const nameOf = (reference: string): string => reference.split('/').at(-1) ?? reference;

/** A table of an object's members; of a union one table a variant. */
function members(schema: Json): string {
  const variants = schema.oneOf ?? schema.anyOf;
  if (variants !== undefined) return variants.map((variant) => members(variant as Json)).join('\n\nor\n\n');
  const rows = Object.entries(schema.properties ?? {}).map(([name, member]) => {
    const type = member as Json;
    const optional = schema.required?.includes(name) === true ? '' : ' (optional)';
    return `| \`${name}\`${optional} | ${cell(typeText(type))} | ${cell(meaning(type))} |`;
  });
  return rows.length === 0 ? '' : ['| member | type | meaning |', '| --- | --- | --- |', ...rows].join('\n');
}

function meaning(schema: Json): string {
  const byDefault = schema.default === undefined ? '' : `default \`${JSON.stringify(schema.default)}\``;
  return [schema.description, byDefault].filter(Boolean).join('; ');
}

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function typeText(schema: Json): string {
  if (schema.$ref !== undefined) return `[${nameOf(schema.$ref)}](#${nameOf(schema.$ref).toLowerCase()})`;
  if (schema.const !== undefined) return `\`${JSON.stringify(schema.const)}\``;
  if (schema.enum !== undefined) return schema.enum.map((value) => `\`${String(value)}\``).join(', ');
  const variants = (schema.oneOf ?? schema.anyOf) as Json[] | undefined;
  if (variants !== undefined) return variants.map(typeText).join(' or ');
  switch (schema.type) {
    case 'array':
      return schema.prefixItems === undefined
        ? `list of ${typeText((schema.items ?? {}) as Json)}`
        : `[${(schema.prefixItems as Json[]).map(typeText).join(', ')}]`;
    case 'object':
      return objectText(schema);
    case undefined:
      return 'anything';
    default:
      return [schema.type].flat().join(' or ');
  }
}

function objectText({ properties = {}, required = [], additionalProperties }: Json): string {
  const names = Object.entries(properties);
  const open = typeof additionalProperties === 'object';
  if (names.length === 1 && names[0]?.[0] === 'driver' && open) return 'the options of a node';
  if (names.length === 0) return 'object';
  const list = names.map(([name, type]) => `${name}${required.includes(name) ? '' : '?'}: ${typeText(type as Json)}`);
  return `{ ${list.join(', ')} }`;
}

if (import.meta.main) {
  mkdirSync(dirname(referencePath), { recursive: true });
  writeFileSync(referencePath, renderReference());
}

/** States, hellos and plans in short, for tests of the decisions. */
import { emptyRecord, type GroupRecord } from '../../src/pair/generation.ts';
import type { Hello } from '../../src/pair/messages.ts';
import { decide } from '../../src/pair/pair.ts';
import {
  type Decision,
  initialState,
  type PairEvent,
  type PairState,
  type Phase,
  type Step,
} from '../../src/pair/pair-state.ts';

export const asMirror = {
  overlays: false,
  durable: false,
  lockStep: false,
  behindMs: 0,
  keepCheckpoint: false,
} as const;
export const idOf = (number: number): string => number.toString(16).padStart(16, '0');
export const given = { wallMs: 1000, id: idOf(99) };

/** A hello of a side that holds nothing, and what is said of it. */
export function helloOf(name: string, more: Partial<Hello> = {}): Hello {
  return {
    type: 'hello',
    program: 'blockstep',
    versions: { min: 1, max: 1 },
    volume: 'v',
    name,
    role: 'secondary',
    generation: null,
    ancestors: [],
    store: 'clean',
    overlays: false,
    lockStep: false,
    checkpoint: null,
    rolledBack: false,
    blank: false,
    disks: [],
    instance: '1',
    replication: { type: 'inet', host: name, port: 1 },
    uris: [],
    aloneSince: null,
    handingOver: null,
    promotedFrom: null,
    overwrite: null,
    ...more,
  };
}

export const theirs = helloOf('beta', { generation: { id: idOf(1), number: 1 }, instance: 'i1' });

export function stateIn(phase: Phase, more: Partial<PairState> = {}, record: Partial<GroupRecord> = {}): PairState {
  const base = emptyRecord({ volume: 'v', name: 'alpha', role: 'primary', store: 'clean', disks: { d: 512 } });
  const fresh = initialState({
    self: { name: 'alpha', peer: 'beta', degraded: 'continue', ...asMirror },
    record: { ...base, generation: { id: idOf(1), number: 1 }, ...record },
    sequence: 5,
    proof: null,
    blank: false,
    built: true,
  });
  return { ...fresh, phase, ...more };
}

export const agreed = { theirs, agreed: true, handOverRefused: false };
export const asked = { ...agreed, agreed: false };
export const on = (state: PairState, event: PairEvent): Decision => decide(state, event, given);
export const steps = (decision: Decision): string[] =>
  (decision.plan?.steps ?? []).map((step) => (step.do === 'set-mode' ? `mode ${step.mode}` : nameOf(step)));
export const nameOf = (step: Step): string => (step.do === 'send' ? `send ${step.message.type}` : step.do);
export const committed = (decision: Decision): Partial<GroupRecord>[] =>
  (decision.plan?.steps ?? []).flatMap((step) => (step.do === 'commit' ? [step.change] : []));

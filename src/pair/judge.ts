/**
 * What two hellos mean together (pair.md 10, 13). Pure and symmetric: if one side comes to `source`, the other comes to
 * `target`, from the same two hellos; everything that is not plain is refused in words, and nothing is ever merged.
 */
import type { Hello } from './messages.ts';

export type Outcome =
  /** I have what counts, the other side is my target */
  | { readonly kind: 'source' }
  | { readonly kind: 'target' }
  /** both went on by themselves: a person decides */
  | { readonly kind: 'split-brain'; readonly reason: string }
  /** the data is there, but no side serves it: a failover decides */
  | { readonly kind: 'no-primary'; readonly reason: string }
  | { readonly kind: 'refused'; readonly reason: string };

/** How two generations stand to each other, seen from the first. */
export type Relation = 'same' | 'newer' | 'older' | 'unrelated' | 'none' | 'mine-only' | 'theirs-only';

type Held = Pick<Hello, 'generation' | 'ancestors'>;

export function relate(mine: Held, theirs: Held): Relation {
  const [a, b] = [mine.generation?.id, theirs.generation?.id];
  if (a === undefined) return b === undefined ? 'none' : 'theirs-only';
  if (b === undefined) return 'mine-only';
  if (a === b) return 'same';
  const [newer, older] = [mine.ancestors.includes(b), theirs.ancestors.includes(a)];
  // Each the other's ancestor cannot come about by our own steps: never a reason to overwrite anything.
  if (newer === older) return 'unrelated';
  return newer ? 'newer' : 'older';
}

export function judge(mine: Hello, theirs: Hello): Outcome {
  const wrong = mismatch(mine, theirs);
  if (wrong !== null) return { kind: 'refused', reason: wrong };
  const relation = relate(mine, theirs);
  switch (relation) {
    case 'same':
      return judgeSame(mine, theirs);
    case 'newer':
    case 'older': {
      const newer = relation === 'newer' ? mine : theirs;
      if (newer.role !== 'primary') return noPrimary(`${newer.name} has the newer data and is ${newer.role}`, newer);
      return { kind: relation === 'newer' ? 'source' : 'target' };
    }
    case 'unrelated':
      return judgeUnrelated(mine, theirs);
    case 'mine-only':
    case 'theirs-only':
    case 'none':
      return judgeFresh(mine, theirs, relation);
  }
}

function judgeSame(mine: Hello, theirs: Hello): Outcome {
  if (mine.role === 'primary' && theirs.role === 'primary') {
    return splitBrain('both sides are primary of one generation', mine, theirs);
  }
  if (mine.role === 'primary') return { kind: 'source' };
  if (theirs.role === 'primary') return { kind: 'target' };
  return noPrimary('both sides are secondary, of one generation', mine);
}

function judgeUnrelated(mine: Hello, theirs: Hello): Outcome {
  const [iMay, theyMay] = [mayOverwrite(mine, theirs), mayOverwrite(theirs, mine)];
  if (iMay !== theyMay) return { kind: iMay ? 'source' : 'target' };
  return splitBrain('neither descends from the other', mine, theirs);
}

/** At least one side holds no generation. */
function judgeFresh(mine: Hello, theirs: Hello, relation: 'mine-only' | 'theirs-only' | 'none'): Outcome {
  if (relation === 'none' && mine.role === theirs.role) {
    if (mine.role === 'none') return noRole(mine, theirs);
    if (mine.role === 'primary') {
      return { kind: 'refused', reason: 'both sides are configured to begin as the primary: change `role` of one' };
    }
    return { kind: 'refused', reason: 'both sides are configured to begin as the secondary: change `role` of one' };
  }
  const iLead = relation === 'mine-only' || (relation === 'none' && mine.role === 'primary');
  const [source, target] = iLead ? [mine, theirs] : [theirs, mine];
  if (source.role === 'none') return noRole(mine, theirs);
  if (source.role !== 'primary') {
    if (source.generation === null) return noRole(mine, theirs);
    return noPrimary(`${source.name} has the data and is secondary, ${target.name} holds nothing yet`, source);
  }
  if (!mayFill(source, target)) {
    return {
      kind: 'refused',
      reason:
        `${target.name} holds data that has no common history with ${source.name}: ` +
        `\`resolve --keep ${source.name}\` overwrites it`,
    };
  }
  return { kind: iLead ? 'source' : 'target' };
}

/** A target without an id: blank, or left over from an unfinished sync of this volume (pair.md 10). */
function mayFill(source: Hello, target: Hello): boolean {
  if (target.blank) return true;
  if (target.role === 'secondary' && target.store === 'incomplete') return true;
  return source.overwrite?.name === target.name;
}

function mayOverwrite(source: Hello, target: Hello): boolean {
  if (source.role !== 'primary') return false;
  if (target.role === 'secondary' && target.store === 'incomplete') return true;
  if (source.overwrite?.name !== target.name) return false;
  return source.overwrite.any || target.role !== 'primary';
}

/** What no history can mend. */
function mismatch(mine: Hello, theirs: Hello): string | null {
  if (mine.volume !== theirs.volume) {
    return `${theirs.name} replicates volume "${theirs.volume}", ${mine.name} volume "${mine.volume}"`;
  }
  if (mine.lockStep !== theirs.lockStep) {
    const [one, other] = mine.lockStep ? [mine, theirs] : [theirs, mine];
    return `${one.name} is configured with \`mode: lock-step\`, ${other.name} is not`;
  }
  if (mine.name === theirs.name) return `both sides are called "${mine.name}"`;
  const sizes = new Map(theirs.disks.map((disk) => [disk.name, disk.size]));
  for (const disk of mine.disks) {
    const size = sizes.get(disk.name);
    if (size === undefined) return `disk ${disk.name} is only in the configuration of ${mine.name}`;
    if (size !== disk.size) {
      return `disk ${disk.name} has ${disk.size} bytes on ${mine.name} and ${size} bytes on ${theirs.name}`;
    }
    sizes.delete(disk.name);
  }
  const [more] = sizes.keys();
  return more === undefined ? null : `disk ${more} is only in the configuration of ${theirs.name}`;
}

function noPrimary(what: string, where: Hello): Outcome {
  return { kind: 'no-primary', reason: `${what}: nothing is served until \`failover\` on ${where.name}` };
}

function noRole(mine: Hello, theirs: Hello): Outcome {
  return { kind: 'no-primary', reason: `neither side knows that its data counts: ${eitherKeeps(mine, theirs)}` };
}

function splitBrain(why: string, mine: Hello, theirs: Hello): Outcome {
  const reason = `split brain: ${why}; both keep their data until a person decides: ${eitherKeeps(mine, theirs)}`;
  return { kind: 'split-brain', reason };
}

/** The same words on both sides. */
function eitherKeeps(mine: Hello, theirs: Hello): string {
  const [first, second] = mine.name < theirs.name ? [mine.name, theirs.name] : [theirs.name, mine.name];
  return `\`resolve --keep ${first}\` or \`resolve --keep ${second}\``;
}

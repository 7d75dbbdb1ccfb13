/** The commands about replication. */
import { findAllocated, throughFilters } from '../../block/chain.ts';
import type { MarkRequest } from '../../block/link-group.ts';
import { blockChecksums } from '../../jobs/checksum.ts';
import { startReplicationSync } from '../../jobs/replication-sync.ts';
import type { Handlers } from '../../qmp/command.ts';
import { checksumsMax, type replicationSchema } from '../../qmp/schema/replication.ts';
import { BlockError, toBlockError } from '../../util/errors.ts';
import { attempt } from '../../util/later.ts';
import type { Engine } from '../engine.ts';

type ReplicationHandlers = Handlers<typeof replicationSchema>;

export function replicationCommands(engine: Engine): ReplicationHandlers {
  const { replicationGroup: group, graph, jobs } = engine;
  const { links } = group;
  return {
    'xen-set-replication': (args) => setReplication(engine, args),
    'query-xen-replication-status': () => {
      try {
        group.getError();
      } catch (error) {
        return { error: true, desc: toBlockError(error).message };
      }
      return { error: false };
    },
    'xen-colo-do-checkpoint': () => group.checkpoint(),
    'x-colo-lost-heartbeat': () => setReplication(engine, { enable: false, primary: false, failover: true }),
    'replication-prepare': () => group.prepare(),
    'replication-commit': ({ epoch }) => group.commit(epoch),
    'replication-abort': () => group.abort(),
    // The members' own schema (`replicationInfo`) says what is in a row; a kind of member may add to it.
    'query-replication': () => group.info() as unknown as ReturnType<ReplicationHandlers['query-replication']>,
    'replication-connect': ({ node, child }) => links.find(node).connect(child),
    'replication-disconnect': ({ node }) => links.find(node).disconnect(),
    'replication-set-mode': ({ mode }) => links.setMode(mode),
    'replication-mark': ({ node, 'held-in': overlays = [], ...what }) => mark(engine, node, overlays, what),
    'replication-forget': ({ node }) => links.find(node).forget(),
    'replication-sync': ({ node, source, speed, ...more }) =>
      startReplicationSync(graph, jobs, links.find(node), {
        source,
        jobId: more['job-id'],
        targetIsZero: more['target-is-zero'],
        speed,
      }),
    'replication-flush': ({ node }) => flushOthers(engine, node),
    'replication-checksum': async (args) => ({ checksums: await blockChecksums(graph, args, checksumsMax) }),
    'replication-bitmap': ({ node }) => {
      const { mayDiffer, missingBytes, mayDifferBytes } = links.find(node).bitmap();
      return { 'may-differ': mayDiffer, 'missing-bytes': missingBytes, 'may-differ-bytes': mayDifferBytes };
    },
  };
}

/**
 * With `failover` the command succeeds even if a member's stop fails: the failure shows in the status query and in the
 * stage event (spec: replication-filter, "Control words").
 */
async function setReplication(
  { replicationGroup }: Engine,
  args: { enable: boolean; primary: boolean; failover?: boolean | undefined },
): Promise<void> {
  if (args.enable) {
    if (args.failover !== undefined) {
      throw new BlockError('invalid-option', 'arguments.failover: is only for enable=false');
    }
    await replicationGroup.start(args.primary ? 'primary' : 'secondary');
    return;
  }
  const failover = args.failover ?? false;
  try {
    await replicationGroup.stop(failover);
  } catch (error) {
    if (!failover) throw error;
  }
}

async function mark(engine: Engine, node: string, overlays: readonly string[], what: MarkRequest): Promise<void> {
  const { graph, replicationGroup } = engine;
  const member = replicationGroup.links.find(node);
  member.mark(what);
  const nodes = overlays.map((name) => throughFilters(graph, name).node);
  if (nodes.length === 0) return;
  const pause = (): Promise<void> => new Promise((resolve) => graph.host.clock.endOfTurn(resolve));
  await findAllocated(nodes, member.length, pause, (offset, length) => member.mark({ ranges: [[offset, length]] }));
}

/** All at the same time; the first failure is the command's. */
async function flushOthers({ replicationGroup }: Engine, node: string | undefined): Promise<void> {
  const { links } = replicationGroup;
  const members = node === undefined ? links.members : [links.find(node)];
  if (members.length === 0) {
    throw new BlockError('wrong-state', 'there is no replication node with on-link-down=hold');
  }
  const results = await Promise.allSettled(members.map((member) => attempt(() => member.proveDurable())));
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

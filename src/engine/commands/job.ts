/** The commands about jobs. */
import { startBlockdevBackup } from '../../jobs/backup.ts';
import { startBlockCommit } from '../../jobs/commit.ts';
import { startBlockdevMirror } from '../../jobs/mirror.ts';
import type { Handlers } from '../../qmp/command.ts';
import type { jobSchema } from '../../qmp/schema/job.ts';
import { BlockError } from '../../util/errors.ts';
import type { Engine } from '../engine.ts';
import { startDriveMirror } from './drive-mirror.ts';

export function jobCommands(engine: Engine): Handlers<typeof jobSchema> {
  const { jobs } = engine;
  return {
    'blockdev-mirror': (args) => startBlockdevMirror(engine.graph, jobs, args),
    'drive-mirror': (args) => startDriveMirror(engine, args),
    'blockdev-backup': (args) => startBlockdevBackup(engine.graph, jobs, args),
    'block-commit': (args) => {
      const { device } = args;
      if (engine.graph.list().every(({ nodeName }) => nodeName !== device)) {
        throw new BlockError('device-not-found', `there is no node '${device}'`);
      }
      return startBlockCommit(engine.graph, jobs, args);
    },
    'query-jobs': () => jobs.list().map((job) => job.info()),
    'query-block-jobs': () => jobs.list().map((job) => job.blockInfo()),
    'job-pause': ({ id }) => jobs.find(id).pause(),
    'job-resume': ({ id }) => jobs.find(id).resume(),
    'job-cancel': ({ id }) => jobs.find(id).cancel(true),
    'job-complete': ({ id }) => jobs.find(id).complete(),
    'job-finalize': ({ id }) => jobs.find(id).finalize(),
    'job-dismiss': ({ id }) => jobs.find(id).dismiss(),
    'block-job-set-speed': ({ device, speed }) => jobs.findActive(device).setSpeed(speed),
    'block-job-cancel': ({ device, force }) => jobs.findActive(device).cancel(force ?? false),
    'block-job-pause': ({ device }) => jobs.findActive(device).pause(),
    'block-job-resume': ({ device }) => jobs.findActive(device).resume(),
    'block-job-complete': ({ device }) => jobs.findActive(device).complete(),
    'block-job-finalize': ({ id }) => jobs.findActive(id).finalize(),
    'block-job-dismiss': ({ id }) => jobs.findActive(id).dismiss(),
  };
}

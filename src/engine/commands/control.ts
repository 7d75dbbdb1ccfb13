/** The commands about the session and the process. */
import type { Handlers } from '../../qmp/command.ts';
import { negotiate } from '../../qmp/negotiation.ts';
import type { controlSchema } from '../../qmp/schema/control.ts';
import { version } from '../../qmp/version.ts';
import type { Engine } from '../engine.ts';
import { runHumanCommand } from './human.ts';

export function controlCommands(engine: Engine): Handlers<typeof controlSchema> {
  let stopped = false;
  return {
    // An engine has no modes: sessions keep theirs.
    qmp_capabilities: negotiate,
    'query-version': () => version,
    'query-commands': () => engine.commandNames.map((name) => ({ name })),
    'query-status': () => ({ status: stopped ? 'paused' : 'running', running: !stopped, singlestep: false }),
    stop: async () => {
      if (stopped) return;
      stopped = true;
      engine.emit('STOP', {});
      await engine.flush();
    },
    cont: () => {
      engine.exports.resumeAll();
      if (!stopped) return;
      stopped = false;
      engine.emit('RESUME', {});
    },
    'human-monitor-command': (args) => runHumanCommand(engine, args['command-line']),
    quit: () => engine.requestQuit('host-qmp-quit'),
  };
}

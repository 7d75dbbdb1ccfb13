/**
 * The `blockstep` command: arguments in, an exit code out. What goes wrong is one line on stderr, and a code of the
 * table in exit-codes.ts. Each sub-command's code is loaded when it is called.
 */
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { createHost } from '../host/index.ts';
import { holdMsMax, holdMsMin } from '../qmp/schema/pair.ts';
import { programVersion } from '../qmp/version.ts';
import { BlockError, toBlockError } from '../util/errors.ts';
import type { Which } from './daemons.ts';
import { exitCodeOf, exitCodes } from './exit-codes.ts';
import type { LogFormat, LogLevel } from './log.ts';
import { parseDuration } from './units.ts';

type Action = () => Promise<number>;

/** Parses the arguments; gives back what is to be done. */
function parse(argv: readonly string[]): Action {
  let action: Action = async () => exitCodes.usage.code;
  const program = new Command('blockstep')
    .description('A virtual disk that survives the loss of its host: NBD in, replicated to a second host.')
    .version(programVersion)
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'blockstep: ')) });
  const command = <Options>(name: string, does: string, run: (options: Options) => Promise<number>): Command =>
    program
      .command(name)
      .description(does)
      .action((options: Options) => {
        action = () => run(options);
      });

  command<{ data: string }>('demo', 'run a pair on this machine, with a 1 GiB disk to try', async (options) => {
    const { demo } = await import('./demo.ts');
    return demo(options.data);
  }).option('-d, --data <dir>', 'where the pair keeps its data', 'data');

  command<RunArguments>('run', 'run one daemon of a pair', async ({ config, ...options }) => {
    const { run } = await import('./run.ts');
    return run(config, options);
  })
    .requiredOption('-c, --config <file>', 'its configuration (YAML)')
    .addOption(new Option('--log <format>', 'form of the log on stderr').choices(['text', 'json']).default('text'))
    .addOption(
      new Option('--log-level <level>', 'what is logged').choices(['debug', 'info', 'warn', 'error']).default('info'),
    )
    .option('--insecure', 'listen for the other side beyond loopback, without TLS')
    .option('--overwrite <name>', 'the side of that name loses its data to the other one');

  const asking = <Options>(name: string, does: string, run: (which: Which, options: Options) => Promise<number>) =>
    command<Which & Options>(name, does, (options) => run(options, options))
      .addOption(
        new Option(
          '-d, --data <dir>',
          'folder of the daemon or the pair (default: data, else -c blockstep.yaml)',
        ).conflicts('config'),
      )
      .option('-c, --config <file>', 'configuration of the daemon')
      .option('--name <name>', 'the daemon of that name');

  asking<{ json?: boolean }>('status', 'how the pair is', async (which, options) => {
    const { status } = await import('./status.ts');
    return status(createHost(), which, { json: options.json === true });
  }).option('--json', 'as JSON: an array with an object for each daemon');

  asking<{ hold?: number; release?: boolean }>('checkpoint', 'make a checkpoint now', async (which, options) => {
    const { checkpoint, holdCheckpoint, releaseCheckpoint } = await import('./pair-commands.ts');
    if (options.release === true) return releaseCheckpoint(createHost(), which);
    if (options.hold !== undefined) return holdCheckpoint(createHost(), which, options.hold);
    return checkpoint(createHost(), which);
  })
    .addOption(
      new Option('--hold <time>', 'make no other one for so long (10m, 2h), on the secondary: for a backup')
        .argParser(holdTime)
        .conflicts('release'),
    )
    .option('--release', 'make none, but end the hold; fails if it had ended before')
    .addHelpText(
      'after',
      '\nEvery write that was answered before is in it. Until the next one, the secondary shows it read-only,\n' +
        'and `failover --to checkpoint` goes back to it.',
    );

  asking<{ to?: 'latest' | 'checkpoint'; force?: boolean }>(
    'failover',
    'make the secondary serve',
    async (which, options) => {
      const { failover } = await import('./pair-commands.ts');
      const to = options.to === undefined ? {} : { to: options.to };
      return failover(createHost(), which, { ...to, force: options.force === true });
    },
  )
    .addOption(
      new Option('--to <state>', 'the latest write (default; not in lock-step), or the last checkpoint').choices([
        'latest',
        'checkpoint',
      ]),
    )
    .option('--force', 'also with a disk that is not whole, or a primary that answers; data may be lost');

  asking('switch', 'change the roles, without losing a write', async (which) => {
    const { switchRoles } = await import('./pair-commands.ts');
    return switchRoles(createHost(), which);
  });

  asking<{ keep: string }>('resolve', 'after a split brain: say whose data stays', async (which, options) => {
    const { resolve } = await import('./pair-commands.ts');
    return resolve(createHost(), which, options.keep);
  }).requiredOption('--keep <name>', 'the side that keeps its data; the other one is overwritten');

  asking('start', 'let a primary serve that waits for the other side', async (which) => {
    const { startAlone } = await import('./pair-commands.ts');
    return startAlone(createHost(), which);
  }).requiredOption(
    '--alone',
    'without the other side; what it may have that this side has not is lost if it never returns',
  );

  command<{ data: string; json?: boolean }>('doctor', 'what this machine offers to disks', async (options) => {
    const { doctor } = await import('./doctor.ts');
    return doctor(createHost(), options.data, { json: options.json === true });
  })
    .option('-d, --data <dir>', 'folder where disks are to be', 'data')
    .option('--json', 'as JSON: an array with an object for each check');

  // Its arguments are those of qemu-storage-daemon, which are not commander's way.
  program
    .command('storage-daemon', { hidden: false })
    .description('the block engine by hand, with the options of qemu-storage-daemon (--help shows them)')
    .helpOption(false);

  program.parse([...argv], { from: 'user' });
  return action;
}

function holdTime(text: string): number {
  const ms = parseDuration(text);
  if (ms !== null && ms >= holdMsMin && ms <= holdMsMax) return ms;
  throw new InvalidArgumentError('Expected a time such as 10m or 2h, 24h at most.');
}

interface RunArguments {
  readonly config: string;
  readonly log: LogFormat;
  readonly logLevel: LogLevel;
  readonly insecure?: boolean;
  readonly overwrite?: string;
}

async function main(argv: readonly string[]): Promise<number> {
  try {
    if (argv[0] === 'storage-daemon') {
      const { storageDaemon } = await import('./storage-daemon.ts');
      return await storageDaemon(argv.slice(1));
    }
    return await parse(argv)();
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok.code : exitCodes.usage.code;
    process.stderr.write(`blockstep: ${describe(error)}\n`);
    return exitCodeOf(error);
  }
}

/** One line for an error that was foreseen; one that was not is our mistake, and shows where. */
function describe(error: unknown): string {
  if (error instanceof BlockError || error instanceof InvalidArgumentError) return error.message;
  if (error instanceof Error && 'syscall' in error) return toBlockError(error).message;
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => {
    process.stderr.write(`blockstep: ${describe(error)}\n`);
    process.exit(exitCodes.failure.code);
  },
);

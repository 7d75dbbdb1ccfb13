'use strict';
/*
 * The first program of every npm script: makes a fresh clone ready (packages, build, the tools that tests talk to),
 * then hands over to the Node of the current LTS line that came with the packages.
 *
 * It runs on whatever Node the machine has, so it is plain CommonJS in old syntax and uses nothing but Node itself.
 * What is ready already costs a few milliseconds. It never changes anything outside this checkout, but for Debian
 * packages that `npm test` is missing, where it may install them.
 *
 *   node scripts/bootstrap.cjs install | build | tools | demo [args] | test [args] | run PROGRAM [args]
 */
const childProcess = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { getTools } = require('./debian-tools.cjs');

const root = path.dirname(__dirname);
const at = (...parts) => path.join(root, ...parts);
const say = (line) => process.stderr.write(`blockstep: ${line}\n`);

function fail(line) {
  say(line);
  process.exit(1);
}

function readJson(file) {
  try {
    return JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch {
    return null;
  }
}

/** Runs to the end with our terminal; a failure ends this program with `otherwise` said. */
function must(program, args, otherwise, env) {
  const done = childProcess.spawnSync(program, args, { cwd: root, stdio: 'inherit', env: env || process.env });
  if (done.error) fail(`${otherwise} (${done.error.message})`);
  if (done.status !== 0) fail(otherwise);
}

// ---------------------------------------------------------------- packages

/** The Node that npm brought; null before `install`. */
function ltsNode() {
  const file = at('node_modules', `node-linux-${process.arch}`, 'bin', 'node');
  return fs.existsSync(file) ? file : null;
}

/** True if each package of the lock file stands in node_modules in that version (optional ones may be left out). */
function installed() {
  const wanted = readJson(at('package-lock.json'));
  const present = readJson(at('node_modules', '.package-lock.json'));
  if (wanted === null || present === null || ltsNode() === null) return false;
  for (const name of Object.keys(wanted.packages)) {
    // Folders of this checkout, and the links to them, have no version that could be another one.
    if (!name.startsWith('node_modules/') || wanted.packages[name].link) continue;
    const there = present.packages[name];
    if (there === undefined && wanted.packages[name].optional) continue;
    if (there === undefined || there.version !== wanted.packages[name].version) return false;
  }
  return true;
}

function npm(args) {
  const cli = process.env.npm_execpath;
  // The machine's own Node runs npm: the one in node_modules is about to be replaced.
  const node = process.env.npm_node_execpath || process.execPath;
  const whole = args.concat(['--loglevel=error', '--no-audit', '--no-fund']);
  const failed = `npm ${args.join(' ')} failed; its message stands above`;
  if (cli && path.basename(cli) === 'npm-cli.js') must(node, [cli].concat(whole), failed);
  else must('npm', whole, failed);
}

function install() {
  if (process.platform !== 'linux') fail(`runs on Linux only, this is ${process.platform}`);
  if (installed()) return;
  say('installing packages (npm ci)');
  // No package needs its install script: the native parts come as packages of their own.
  npm(['ci', '--ignore-scripts', '--include=dev', '--include=optional']);
  if (ltsNode() === null) fail(`there is no prebuilt Node for ${process.arch}: x64 and arm64 are supported`);
}

// ---------------------------------------------------------------- build

function filesUnder(folder) {
  const found = [];
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const whole = path.join(folder, entry.name);
    if (entry.isDirectory()) found.push(...filesUnder(whole));
    else found.push(whole);
  }
  return found.sort((a, b) => (a < b ? -1 : 1));
}

function lives(pid) {
  return fs.existsSync(`/proc/${pid}`);
}

/** What the build is made from, as one hash. */
function sourceHash() {
  const hash = crypto.createHash('sha256');
  const files = filesUnder(at('src')).concat([at('tsconfig.json'), at('tsconfig.build.json'), at('package-lock.json')]);
  for (const file of files)
    hash
      .update(`${path.relative(root, file)}\0`)
      .update(fs.readFileSync(file))
      .update('\0');
  return hash.digest('hex');
}

function build() {
  install();
  const stamp = at('dist', '.source-hash');
  const hash = sourceHash();
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === hash) return;
  say('building (tsc)');
  // Into a folder of its own, then renamed: a build that fails leaves the old one, and nobody runs half of one. Ctrl-C
  // may have left such a folder behind.
  for (const name of fs.readdirSync(root)) {
    const builder = /^dist\.(\d+)$/.exec(name);
    if (builder !== null && !lives(Number(builder[1]))) fs.rmSync(at(name), { recursive: true, force: true });
  }
  const fresh = at(`dist.${process.pid}`);
  try {
    must(
      ltsNode(),
      [at('node_modules', 'typescript', 'bin', 'tsc'), '-p', 'tsconfig.build.json', '--outDir', fresh],
      'the build failed; the compiler says above where',
    );
    fs.writeFileSync(path.join(fresh, '.source-hash'), hash);
    fs.rmSync(at('dist'), { recursive: true, force: true });
    fs.renameSync(fresh, at('dist'));
  } finally {
    fs.rmSync(fresh, { recursive: true, force: true });
  }
}

// ---------------------------------------------------------------- handing over

/** The npm scripts' environment: the Node of this checkout first (not every npm links it), then its other programs. */
function environment() {
  const env = Object.assign({}, process.env);
  const node = ltsNode();
  const first = node === null ? [] : [path.dirname(node)];
  env.PATH = [...first, at('node_modules', '.bin'), env.PATH || '', '/usr/sbin', '/sbin'].join(':');
  // Sources run as they are, in hundreds of processes: compiling each of them once halves their start.
  env.NODE_COMPILE_CACHE = env.NODE_COMPILE_CACHE || at('node_modules', '.cache', 'compile');
  return env;
}

/**
 * Runs the program with our terminal and ends as it ends. Ctrl-C in a terminal reaches the program by itself, and npm
 * may send it once more: so we wait for its clean end and only hand on what was meant for us alone.
 */
function handOver(program, args) {
  const child = childProcess.spawn(program, args, { cwd: process.cwd(), stdio: 'inherit', env: environment() });
  process.on('SIGINT', () => child.kill('SIGINT'));
  process.on('SIGTERM', () => child.kill('SIGTERM'));
  process.on('SIGHUP', () => child.kill('SIGHUP'));
  child.on('error', (error) => fail(`${program} cannot be run: ${error.message}`));
  child.on('exit', (code, signal) => {
    if (signal === null) process.exit(code);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}

function testFiles(folder) {
  return filesUnder(folder)
    .filter((file) => file.endsWith('.test.ts'))
    .map((file) => path.relative(root, file));
}

function getToolsOrFail(use) {
  const problem = getTools(use, say);
  if (problem !== null) fail(problem);
}

function test(args) {
  build();
  getToolsOrFail('test');
  const chosen = args.filter((one) => !one.startsWith('-'));
  const options = args.filter((one) => one.startsWith('-'));
  const reporter = process.stdout.isTTY ? 'spec' : 'dot';
  const files = chosen.length > 0 ? chosen : testFiles(at('test'));
  process.chdir(root);
  // A test that hangs is a failure, said with its name: no test file takes minutes.
  const fixed = ['--test', '--test-concurrency=2', '--test-timeout=240000', `--test-reporter=${reporter}`];
  handOver(ltsNode(), [...fixed, ...options, ...files]);
}

const [verb, ...rest] = process.argv.slice(2);
if (verb === 'install') install();
else if (verb === 'build') build();
else if (verb === 'demo') {
  build();
  handOver(ltsNode(), [at('bin', 'blockstep.cjs'), 'demo', ...rest]);
} else if (verb === 'test') test(rest);
else if (verb === 'tools') getToolsOrFail('test');
else if (verb === 'bench') {
  build();
  getToolsOrFail('bench');
  handOver(ltsNode(), [at('bench', 'main.ts'), ...rest]);
} else if (verb === 'run' && rest.length > 0) {
  install();
  handOver(rest[0], rest.slice(1));
} else fail('usage: node scripts/bootstrap.cjs install | build | tools | demo | test | bench | run PROGRAM');

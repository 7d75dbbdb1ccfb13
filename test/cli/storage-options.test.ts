import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DriverRegistry } from '../../src/block/registry.ts';
import { parseStorageOptions } from '../../src/cli/storage-options.ts';
import { drivers } from '../../src/drivers/index.ts';

const registry = new DriverRegistry(drivers);
const parse = (...argv: string[]) => parseStorageOptions(argv, registry);
const argsOf = (...argv: string[]): unknown[] =>
  parse(...argv).steps.map((step) => (step.kind === 'command' ? step.args : step.address));

test('steps come in the order of the command line, whatever their kind', () => {
  const { steps, pidfile, daemonize, show } = parse(
    '--nbd-server=addr.type=unix,addr.path=/n',
    '--pidfile',
    '/p',
    '--blockdev',
    'null-co,node-name=a,size=1M',
    '--export',
    'nbd,id=e,node-name=a',
    '--chardev',
    'socket,id=c,path=/q,server=on,wait=off',
    '--blockdev',
    'null-co,node-name=b,size=1M',
    '--monitor',
    'c',
    '--daemonize',
  );
  assert.deepEqual(
    steps.map((step) => (step.kind === 'command' ? step.command : step.kind)),
    ['nbd-server-start', 'blockdev-add', 'block-export-add', 'blockdev-add', 'monitor'],
  );
  assert.deepEqual([pidfile, daemonize, show], ['/p', true, null]);
});

test('the options of a node, and of the nodes in it, get their types from the schemas of their drivers', () => {
  const text =
    'driver=raw,node-name=r,offset=4k,read-only=on,cache.direct=off,' +
    'file.driver=file,file.filename=12,file.cache.direct=on';
  assert.deepEqual(argsOf('--blockdev', text), [
    {
      driver: 'raw',
      'node-name': 'r',
      offset: 4096,
      'read-only': true,
      cache: { direct: false },
      file: { driver: 'file', filename: '12', cache: { direct: true } },
    },
  ]);
  const quorum = 'quorum,node-name=q,vote-threshold=1,children.0=a,children.1.driver=memory,children.1.size=1M';
  assert.deepEqual(argsOf('--blockdev', quorum), [
    { driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1, children: ['a', { driver: 'memory', size: 1048576 }] },
  ]);
});

test('an NBD client takes its server as dotted keys', () => {
  assert.deepEqual(argsOf('--blockdev', 'nbd,node-name=n,server.type=inet,server.host=127.0.0.1,server.port=10809'), [
    { driver: 'nbd', 'node-name': 'n', server: { type: 'inet', host: '127.0.0.1', port: '10809' } },
  ]);
});

test('server, export and monitor become what their QMP commands take', () => {
  assert.deepEqual(
    argsOf(
      '--nbd-server',
      'addr.type=inet,addr.host=127.0.0.1,addr.port=0,max-connections=8',
      '--export',
      'nbd,id=e,node-name=a,name=x,,y,writable=on,multi-conn=off',
      '--chardev',
      'socket,id=c,host=127.0.0.1,port=0,server=on,wait=off',
      '--monitor',
      'c,mode=control,pretty=off',
    ),
    [
      { addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } }, 'max-connections': 8 },
      { type: 'nbd', id: 'e', 'node-name': 'a', name: 'x,y', writable: true, 'multi-conn': 'off' },
      { type: 'inet', host: '127.0.0.1', port: 0 },
    ],
  );
});

test('what is wrong is named with the option it stands in', () => {
  for (const [argv, message] of [
    [['--frobnicate'], /--frobnicate.*--help/],
    [['positional'], /positional/],
    [['--pidfile'], /--pidfile/],
    [['--blockdev', 'driver=nope,node-name=m'], /^--blockdev driver=nope.*no driver 'nope'.*memory/],
    [['--blockdev', '{"driver":"memory"'], /not valid JSON/],
    [['--blockdev', 'memory,node-name=m,size=1M,node-name'], /"node-name": expected key=value/],
    [['--export', 'nbd,id=e,node-name=m,writable=perhaps'], /writable: expected true or false, got "perhaps"/],
    [['--export', 'vhost-user-blk,id=e,node-name=m'], /type: expected (one of )?nbd, got "vhost-user-blk"/],
    [['--nbd-server', 'addr.type=inet,addr.host=127.0.0.1'], /addr\.port: is missing/],
    [
      ['--nbd-server', 'addr.type=unix,addr.path=/n,max-connections=-1'],
      /max-connections: expected a number, got "-1"/,
    ],
    [['--monitor', 'chardev=c'], /chardev: give the --chardev/],
    [['--chardev', 'stdio,id=c'], /backend: expected socket, got "stdio"/],
    [['--chardev', 'socket,id=c,server=on'], /path: is missing/],
    [['--chardev', 'socket,id=c,path=/a,host=127.0.0.1,server=on'], /path: excludes host/],
  ] as const) {
    assert.throws(() => parse(...argv), { code: 'invalid-option', message }, argv.join(' '));
  }
  const socket = ['--chardev', 'socket,id=c,path=/q,server=on,wait=off'];
  assert.throws(() => parse(...socket, ...socket), { code: 'name-in-use' });
  assert.throws(() => parse(...socket, '--monitor', 'c', '--monitor', 'c'), { code: 'in-use' });
});

test('what is not supported is said, not left out in silence', () => {
  for (const [text, message] of [
    ['socket,id=c,path=/s', /server: only server=on/],
    ['socket,id=c,path=/s,server=off', /server: only server=on/],
    ['socket,id=c,path=/s,server=on,wait=on', /wait: only wait=off/],
  ] as const) {
    assert.throws(() => parse('--chardev', text), { code: 'not-supported', message });
  }
});

test('pair 19: QMP over TCP listens on loopback only', () => {
  for (const host of ['0.0.0.0', '::', '10.0.0.1', 'example.org', '127.0.0.1.example.org']) {
    const text = `socket,id=c,host=${host},port=0,server=on,wait=off`;
    assert.throws(() => parse('--chardev', text), { code: 'not-supported', message: /loopback only/ }, host);
  }
  for (const host of ['127.0.0.1', '127.1.2.3', 'localhost', '::1']) {
    parse('--chardev', `socket,id=c,host=${host},port=0,server=on,wait=off`);
  }
});

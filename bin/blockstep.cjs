#!/usr/bin/env node
'use strict';
/*
 * The `blockstep` command's launcher. Any Node can parse it, however old: it finds a Node that is new enough (this one,
 * or the one that npm brought into a checkout) or says in one line what is missing. The program itself is
 * dist/cli/main.js.
 */
var fs = require('fs');
var path = require('path');

var nodeMajorMin = 24;
var main = path.join(__dirname, '..', 'dist', 'cli', 'main.js');

function fail(line) {
  process.stderr.write('blockstep: ' + line + '\n');
  process.exit(1);
}

/* The Node that stands beside us as a package, or null. */
function packagedNode() {
  try {
    var found = require.resolve('node-linux-' + process.arch + '/package.json');
    var program = path.join(path.dirname(found), 'bin', 'node');
    return fs.existsSync(program) ? program : null;
  } catch (error) {
    return null;
  }
}

function launchWith(program) {
  var child = require('child_process').spawn(program, [main].concat(process.argv.slice(2)), { stdio: 'inherit' });
  ['SIGINT', 'SIGTERM', 'SIGHUP'].forEach(function (signal) {
    process.on(signal, function () {
      child.kill(signal);
    });
  });
  child.on('error', function (error) {
    fail(program + ' cannot be run: ' + error.message);
  });
  child.on('exit', function (code, signal) {
    if (signal === null) process.exit(code);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}

if (!fs.existsSync(main)) {
  fail('not built yet; run `npm run build` in ' + path.dirname(__dirname));
} else if (parseInt(process.versions.node, 10) >= nodeMajorMin) {
  process.argv[1] = main;
  require(main);
} else {
  var node = packagedNode();
  if (node === null) fail('needs Node ' + nodeMajorMin + ' or later, this is ' + process.version);
  else launchWith(node);
}

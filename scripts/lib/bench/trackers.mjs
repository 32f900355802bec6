import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { CLI, runAround } from './chunkmount.mjs';
import { describeMachine } from './machine.mjs';
import { Results } from './measurements.mjs';
import { parseSize } from './options.mjs';
import { cell, humanSize, memory, seconds } from './report.mjs';
import { interrupted, isOnPath, progress, run, runToEnd, timed } from './run.mjs';
import { DISKS } from './tracked-disks.mjs';
import { Layout, Machine, VM, writeImage } from './tracked-machine.mjs';
import { CHUNK_SIZE } from './workspace.mjs';

/** Long enough after the last write for a tracker to believe the times of a file. */
const QUIET_MS = 2_000;
const UNCHANGED_SECONDS = 5;
const CHANGED_SECONDS = 2;
const AUDIT = 0.005;
const MOUNT_POLL_MS = 50;

/** Sessions of one disk, each around an rsync to a local copy. */
class Sessions {
  constructor(directory, disk, file) {
    this.copy = path.join(directory, 'copy');
    fs.mkdirSync(this.copy);
    this.source = disk.isImage ? [`--image=${file}`, `--name=${VM}`] : [`--vm=${VM}`];
    this.options = [...disk.options, '--zero-chunks=skip'];
    this.env = {
      CHUNKMOUNT_STATEDIR: path.join(directory, 'state'),
      CHUNKMOUNT_BACKUPDIR: path.join(directory, 'mnt'),
    };
  }

  /** What `runAround` returns. What earlier backups wrote is on the disk by then, as it is a day later. */
  async backUp() {
    await run('sync', []);
    await sleep(QUIET_MS, undefined, { signal: interrupted.signal });
    return runAround([...this.source, ...this.options], this.copy, this.env);
  }

  async end() {
    await run(process.execPath, [CLI, 'cleanup', '--kept', ...this.source.filter((one) => !one.startsWith('--image'))], {
      env: this.env,
      evenSo: true,
    });
  }
}

async function measureDisk(name, { root, layout, rounds, machine }, results) {
  const directory = path.join(root, name);
  fs.mkdirSync(directory);
  const disk = new DISKS[name](directory, layout);
  let sessions;
  let started = false;
  progress(`${name}: making the disk`);
  try {
    const made = await disk.make();
    sessions = new Sessions(directory, disk, made.file);
    if (!disk.isImage) await machine.start(made);
    started = !disk.isImage;
    progress(`${name}: first backup`);
    await record(sessions, 'first', name, results);
    for (let round = 1; round <= rounds; round++) {
      progress(`${name}: round ${round} of ${rounds}`);
      await record(sessions, 'unchanged', name, results);
      await disk.write(machine, layout.written(round), round);
      await record(sessions, 'changed', name, results);
    }
  } finally {
    await sessions?.end();
    if (started) await machine.stop();
    await disk.remove();
  }
  fs.rmSync(directory, { recursive: true, force: true });
}

async function record(sessions, row, column, results) {
  const { seconds: took, bytes, tracked } = await sessions.backUp();
  results.add(`${row}, time`, column, took);
  results.add(`${row}, read`, column, bytes);
  results.add(`${row}, tracked`, column, tracked ? 1 : 0);
}

/** chunkfs of virt-backup's, on a disk that stands still; it knows nothing of changes, and has a file for each chunk of zeros. */
async function measureChunkfs({ root, layout, rounds }, results) {
  const directory = path.join(root, 'chunkfs');
  const [tree, copy] = [path.join(directory, 'tree'), path.join(directory, 'copy')];
  for (const one of [directory, tree, copy]) fs.mkdirSync(one);
  const disk = new DISKS.still(directory, layout);
  progress('chunkfs: making the disk');
  const { file } = await disk.make();
  const backUp = async (row) => {
    const { seconds: took } = await timed(async () => {
      await run('chunkfs', ['-o', 'ro', String(CHUNK_SIZE), file, tree], { discard: true });
      try {
        while (fs.readdirSync(tree).length === 0) await sleep(MOUNT_POLL_MS);
        await run('rsync', ['-aS', '--delete', `${tree}/`, `${copy}/`]);
      } finally {
        await run('umount', [tree], { evenSo: true });
      }
    });
    results.add(`${row}, time`, 'chunkfs', took);
  };
  progress('chunkfs: first backup');
  await backUp('first');
  for (let round = 1; round <= Math.min(rounds, 1); round++) {
    progress('chunkfs: once');
    await backUp('unchanged');
    writeImage(file, layout.written(round));
    await backUp('changed');
  }
  fs.rmSync(directory, { recursive: true, force: true });
}

/** Bytes a second that the file system takes, synced. */
async function diskSpeed(root) {
  const file = path.join(root, 'speed');
  const bytes = 1024 ** 3;
  const args = ['if=/dev/zero', `of=${file}`, 'bs=1M', `count=${bytes / 1024 ** 2}`, 'conv=fsync'];
  const { seconds: took } = await timed(() => run('dd', args));
  fs.rmSync(file);
  return bytes / took;
}

function verdict(met) {
  return met ? 'met' : '**not met**';
}

function table(results, names, { layout, speed }) {
  const changed = layout.written(1).length * CHUNK_SIZE;
  // At least 16 chunks are audited.
  const audit = Math.max(16, Math.ceil((AUDIT * layout.data) / CHUNK_SIZE)) * CHUNK_SIZE;
  const mostRead = 1.2 * changed + audit;
  const mostTime = CHANGED_SECONDS + changed / speed;
  const lines = [
    '| tracker | disk | first backup | 1 % changed | read | nothing changed | read | to reach |',
    '|---|---|---|---|---|---|---|---|',
  ];
  for (const name of names) {
    const both = (row) => [
      cell(results, `${row}, time`, name, seconds),
      cell(results, `${row}, read`, name, (bytes) => memory(bytes)),
    ];
    const tracked = (row) => results.median(`${row}, tracked`, name) === 1;
    const judged = [];
    if (tracked('changed')) {
      judged.push(`read: ${verdict(results.most('changed, read', name) <= mostRead)}`);
      judged.push(`time: ${verdict(results.median('changed, time', name) <= mostTime)}`);
    }
    if (tracked('unchanged')) {
      judged.push(`unchanged: ${verdict(results.median('unchanged, time', name) <= UNCHANGED_SECONDS)}`);
    }
    const note = name === 'chunkfs' ? 'raw file, no snapshot' : new DISKS[name]('', layout).note;
    const first = cell(results, 'first, time', name, seconds);
    lines.push(`| ${[name, note, first, ...both('changed'), ...both('unchanged'), judged.join('; ') || '–'].join(' | ')} |`);
  }
  const reach =
    `To reach: read at most 1.2 × the changed chunks and the audit = ${memory(mostRead)}; 1 % changed within ` +
    `${CHANGED_SECONDS} s + the changed bytes at the disk's speed (${Math.round(speed / 1e6)} MB/s) = ${seconds(mostTime)}; nothing changed within ${UNCHANGED_SECONDS} s.`;
  return `${lines.join('\n')}\n\n${reach}`;
}

function parse(args) {
  const { values } = parseArgs({
    args,
    options: {
      size: { type: 'string', default: '100G' },
      data: { type: 'string', default: '8G' },
      rounds: { type: 'string', default: '3' },
      dir: { type: 'string', default: '/var/tmp' },
      only: { type: 'string', default: 'none,still,overlay,reflink,bitmap,chunkfs' },
    },
  });
  const layout = new Layout(parseSize(values.size, 'size'), parseSize(values.data, 'data'));
  return { layout, rounds: Number(values.rounds), directory: values.dir, only: values.only.split(',') };
}

async function main(args) {
  const { layout, rounds, directory, only } = parse(args);
  const names = [];
  for (const name of only) if (name !== 'chunkfs' || (await isOnPath('chunkfs'))) names.push(name);
  const root = fs.mkdtempSync(path.join(fs.realpathSync(directory), 'chunkmount-bench-'));
  fs.chmodSync(root, 0o755);
  try {
    const results = new Results();
    const speed = await diskSpeed(root);
    const given = { root, layout, rounds, machine: new Machine(root) };
    for (const name of names) {
      if (name === 'chunkfs') await measureChunkfs(given, results);
      else await measureDisk(name, given, results);
    }
    const title =
      `A disk of ${humanSize(layout.size)} with ${humanSize(layout.data)} of data, \`chunkmount run -- rsync -a\` with --zero-chunks=skip into a local copy, ` +
      `from command to prompt; what was read of the disk to know its chunks. Medians of ${rounds} (least–most).`;
    const machine = await describeMachine(root);
    process.stdout.write(`${title}\n\n${table(results, names, { layout, speed })}\n\n${machine}\n`);
  } finally {
    fs.rmSync(root, { recursive: true, force: true });
  }
}

await runToEnd(main);

import * as fs from 'node:fs';
import * as path from 'node:path';
import { CLI } from './chunkmount.mjs';
import { run, secondsOf, timed } from './run.mjs';
import { CHUNK_SIZE, warm } from './workspace.mjs';

const chunkmount = (...args) => [process.execPath, [CLI, ...args]];

async function warmTree(tree) {
  await run('find', [tree, '-type', 'f', '-exec', 'cat', '{}', '+'], { discard: true });
}

/** Everything that a measurement writes is new, and gone after it. */
async function withNew(file, work) {
  fs.rmSync(file, { force: true });
  try {
    return await work(file);
  } finally {
    fs.rmSync(file, { force: true });
  }
}

/** (g) A whole disk from a copy of its tree. */
async function measureRestore(workspace, tree, results, then = async () => {}) {
  await withNew(workspace.path('restored.raw'), async (file) => {
    await warmTree(tree);
    results.add('restore', 'own', await secondsOf(...chunkmount('restore', tree, '--disk=disk0', `--to=${file}`)));
    await then(file);
  });
}

/** What that is compared with: a copy of the raw image by qemu-img, which does not wait for the disk as restore does. */
async function measureConvert(workspace, results) {
  await withNew(workspace.path('converted.raw'), async (file) => {
    await warm(workspace.image);
    const convert = await secondsOf('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', workspace.image, file]);
    results.add('restore', 'other', convert);
    results.add('restore, synced', 'other', convert + (await secondsOf('sync', [file])));
  });
}

/** Each comes first once: who does gets memory that is not in use yet, which can take longer than all else. */
async function measureWhole(workspace, tree, results) {
  await measureConvert(workspace, results);
  await measureRestore(workspace, tree, results);
  await measureRestore(workspace, tree, results, (file) => measureDelta(workspace, tree, file, results));
  await measureConvert(workspace, results);
}

/** (h) The same onto a disk of which 1 % is wrong. */
async function measureDelta(workspace, tree, file, results) {
  const zeros = Buffer.alloc(CHUNK_SIZE, 1);
  const fd = fs.openSync(file, 'r+');
  for (const index of workspace.rewrittenChunks()) fs.writeSync(fd, zeros, 0, CHUNK_SIZE, index * CHUNK_SIZE);
  fs.closeSync(fd);
  await workspace.settle();
  await warm(file);
  const args = ['restore', tree, '--disk=disk0', `--to=${file}`, '--delta', '--json'];
  const { seconds, result } = await timed(() => run(...chunkmount(...args)));
  results.add('delta', 'own', seconds);
  const { written } = JSON.parse(result).disks[0];
  const expected = workspace.rewrittenChunks().length;
  if (written !== expected) throw new Error(`--delta wrote ${written} chunks instead of ${expected}`);
}

/** (i) A disk as one file, read from its beginning to its end: each chunk for the first time, and compared with its sum. */
async function measureImageMount(workspace, tree, results) {
  const mountpoint = workspace.directory('images');
  await warmTree(tree);
  await run(...chunkmount('image-mount', tree, mountpoint));
  try {
    const image = path.join(mountpoint, 'disk0.img');
    results.add('image-mount', 'own', await secondsOf('dd', [`if=${image}`, 'of=/dev/null', 'bs=1M', 'status=none']));
  } finally {
    await run(...chunkmount('image-unmount', mountpoint), { evenSo: true });
  }
}

/** A copy of the tree as it is now. */
async function currentCopy(workspace, contestant) {
  const copy = workspace.directory('tree');
  const { tree } = await contestant.open();
  await run('rsync', ['-a', '--delete', `${tree}/`, `${copy}/`]);
  await contestant.close();
  return copy;
}

/** `contestant` shows the tree that is copied, and restored. */
export async function measureRestoring(workspace, contestant, results) {
  const tree = await currentCopy(workspace, contestant);
  await measureWhole(workspace, tree, results);
  await measureImageMount(workspace, tree, results);
  await warmTree(tree);
  results.add('verify', 'own', await secondsOf(...chunkmount('verify', tree)));
}

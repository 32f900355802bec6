import { Chunkmount } from './chunkmount.mjs';
import { run, secondsOf } from './run.mjs';
import { warm } from './workspace.mjs';

/** Measured values: `row` is a key of report.mjs, `column` a contestant. Values are seconds or bytes. */
export class Results {
  #values = new Map();

  add(row, column, value) {
    const key = `${row}|${column}`;
    this.#values.set(key, [...(this.#values.get(key) ?? []), value]);
  }

  /** All values of a cell, sorted; undefined if there are none. */
  of(row, column) {
    return this.#values.get(`${row}|${column}`)?.toSorted((a, b) => a - b);
  }

  median(row, column) {
    const values = this.of(row, column);
    return values === undefined
      ? undefined
      : (values[(values.length - 1) >> 1] + values[values.length >> 1]) / 2;
  }

  most(row, column) {
    return this.of(row, column)?.at(-1);
  }
}

const find = (tree) => ['find', [tree, '-printf', '%s %T@\n']];
const dryRun = (tree, copy) => ['rsync', ['-an', `${tree}/`, `${copy}/`]];
const transfer = (tree, copy) => ['rsync', ['-a', `${tree}/`, `${copy}/`]];

/** Makes the tree visible for `work`, freshly, its image in the page cache, all chunks scanned if `scan` is 'before'. */
async function withTree(contestant, scan, results, work) {
  await contestant.warm();
  const opened = await contestant.open();
  if (scan === 'before' && contestant.scans) results.add('scan', contestant.name, await contestant.scanned());
  await work(opened);
  if (contestant.scans) results.add('memory', contestant.name, contestant.chunkmount.peakMemory());
  await contestant.close();
}

/** Both ways to come to a tree: just after the mount, and with all chunks hashed already. */
function scansOf(contestant) {
  return contestant.scans ? ['included', 'before'] : ['before'];
}

/** (a) and (b), and the scans for (c). */
export async function measureReading(contestant, results) {
  const { name, copy } = contestant;
  for (const scan of scansOf(contestant)) {
    await withTree(contestant, scan, results, async ({ tree }) => {
      results.add(`find, scan ${scan}`, name, await secondsOf(...find(tree)));
    });
    await run('find', [copy, '-printf', '%s'], { discard: true });
    await withTree(contestant, scan, results, async ({ tree }) => {
      results.add(`dry run, scan ${scan}`, name, await secondsOf(...dryRun(tree, copy)));
    });
  }
  await withTree(contestant, 'before', results, async ({ chunks }) => {
    // The names are known and the attributes in memory, so that only reading is measured.
    await run('find', [chunks, '-type', 'f', '-size', '+0'], { discard: true });
    results.add('read', name, await secondsOf('find', [chunks, '-type', 'f', '-exec', 'cat', '{}', '+']));
  });
}

/** (c): what the scan is compared with. */
export async function measureHashing(workspace, results) {
  await warm(workspace.image);
  results.add('scan', 'other', await secondsOf('xxhsum', ['-H1', workspace.image]));
}

/** (d): 1 % of the chunks are new, and everything else in the copy is current. */
export async function measureTransfer(contestant, results) {
  const { name, copy } = contestant;
  for (const scan of scansOf(contestant)) {
    await contestant.rewrite();
    await withTree(contestant, scan, results, async ({ tree }) => {
      results.add(`transfer, scan ${scan}`, name, await secondsOf(...transfer(tree, copy)));
    });
  }
}

/** (d): what the transfer is compared with. */
export async function measureRawTransfer(workspace, results) {
  const copy = workspace.path('copy.raw');
  await workspace.rewriteImage();
  await warm(workspace.image);
  await warm(copy);
  const args = ['-a', '--inplace', '--no-whole-file', workspace.image, copy];
  results.add('transfer, scan before', 'other', await secondsOf('rsync', args));
}

/** (e) and (f) of one image: a first session, which knows nothing, and a second one. */
export async function measureMounting(workspace, { image, transport, row }, results) {
  const chunkmount = new Chunkmount(workspace.directory('mounting'), { image, transport });
  try {
    chunkmount.forget();
    for (const session of ['first', 'second']) {
      const { seconds } = await chunkmount.open();
      results.add(`mount ${row}, ${session}`, transport, seconds);
      await chunkmount.scanned();
      results.add(`memory ${row}`, transport, chunkmount.peakMemory());
      await chunkmount.close();
    }
  } finally {
    await chunkmount.end();
    chunkmount.forget();
  }
}

/** Copies that the first round begins with: all are current. Not measured. */
export async function makeCopies(workspace, contestants, results) {
  for (const contestant of contestants) {
    if (contestant.name === 'native') continue;
    const { tree } = await contestant.open();
    if (contestant.name === 'kernel')
      await run('rsync', ['-a', `${tree}/`, `${workspace.directory('files')}/`]);
    await run(...transfer(tree, contestant.copy), { discard: true });
    if (contestant.scans) results.add('memory', contestant.name, contestant.chunkmount.peakMemory());
    await contestant.close();
  }
  await run('cp', [workspace.image, workspace.path('copy.raw')]);
  await workspace.settle();
}

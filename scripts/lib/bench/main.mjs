import { Chunkfs, Files, Transport } from './contestants.mjs';
import { describeMachine } from './machine.mjs';
import {
  makeCopies,
  measureHashing,
  measureMounting,
  measureRawTransfer,
  measureReading,
  measureTransfer,
  Results,
} from './measurements.mjs';
import { parseOptions } from './options.mjs';
import { restoreTable, resultTable, targetTable } from './report.mjs';
import { measureRestoring } from './restoring.mjs';
import { isOnPath, progress, runToEnd } from './run.mjs';
import { measureTracking, trackingTable } from './tracking.mjs';
import { CHUNK_SIZE, Workspace } from './workspace.mjs';

const TRANSPORTS = ['kernel', 'native'];

/** Everything once; who is compared with whom comes right after the other. */
async function measureRound(workspace, contestants, results, round) {
  for (const contestant of contestants) {
    progress(`${round}: names, attributes and content, ${contestant.name}`);
    await measureReading(contestant, results);
  }
  progress(`${round}: xxhsum`);
  await measureHashing(workspace, results);
  for (const contestant of contestants) {
    progress(`${round}: 1 % changed, ${contestant.name}`);
    await measureTransfer(contestant, results);
  }
  progress(`${round}: 1 % changed, rsync of the image`);
  await measureRawTransfer(workspace, results);
  progress(`${round}: the way back`);
  await measureRestoring(workspace, contestants[0], results);
  progress(`${round}: only what changed`);
  await measureTracking(workspace, contestants[0], results);
  for (const transport of TRANSPORTS) {
    progress(`${round}: mounting, ${transport}`);
    await measureMounting(workspace, { image: workspace.image, transport, row: 'image' }, results);
    if (workspace.sparseImage === undefined) continue;
    await measureMounting(workspace, { image: workspace.sparseImage, transport, row: 'sparse' }, results);
  }
}

async function measure(options, workspace, contestants) {
  const results = new Results();
  progress('making images and copies');
  workspace.makeImages();
  await makeCopies(workspace, contestants, results);
  for (let round = 1; round <= options.rounds; round++) {
    await measureRound(workspace, contestants, results, `round ${round} of ${options.rounds}`);
  }
  return results;
}

function footnotes({ rounds }, withChunkfs) {
  return [
    `Medians of ${rounds} interleaved round${rounds === 1 ? '' : 's'} (least–most; memory: most), each on a freshly mounted tree, the image in the page cache. Chunks of 256 KiB.`,
    "(c) The time of the scan is the daemon's own, from the start of its two scanners to their end, with nobody else reading.",
    '(d) `rsync -a` into a local copy that is current except for 1 % of the chunks; the raw image with `rsync -a --inplace --no-whole-file`.',
    '(g) From a copy of the tree to a new raw file, every chunk checked, and synced; `qemu-img convert` of the raw image to a raw file.',
    '(i) `dd bs=1M` of the whole disk from a fresh mount, the copy in the page cache.',
    '(l), (m) `chunkmount run -- rsync -a` into a local copy, from command to prompt; what was read of the image to know its chunks, the sample of the audit included.',
    ...(withChunkfs ? [] : ['chunkfs is not on PATH: it was not measured.']),
  ];
}

async function print(options, workspace, results, withChunkfs) {
  const facts = { ...options, chunkSize: CHUNK_SIZE };
  const parts = [
    resultTable(results, facts),
    targetTable(results, facts),
    restoreTable(results, facts),
    trackingTable(results, facts),
  ];
  const lines = [...footnotes(options, withChunkfs), await describeMachine(workspace.root)];
  process.stdout.write(`${parts.join('\n\n')}\n\n${lines.join('\n')}\n`);
}

async function main(args) {
  const options = parseOptions(args);
  const withChunkfs = await isOnPath('chunkfs');
  const workspace = Workspace.create({ ...options, copies: withChunkfs ? 6 : 5 });
  const contestants = [
    ...TRANSPORTS.map((transport) => new Transport(workspace, transport)),
    new Files(workspace),
    ...(withChunkfs ? [new Chunkfs(workspace)] : []),
  ];
  try {
    const results = await measure(options, workspace, contestants);
    await print(options, workspace, results, withChunkfs);
  } finally {
    await finish(workspace, contestants);
  }
}

/** Leaves nothing behind; where a tree cannot be unmounted, its files stay, and are named. */
async function finish(workspace, contestants) {
  try {
    for (const contestant of contestants) await contestant.end();
  } catch (error) {
    throw new Error(`${workspace.root} is left: ${error.message}`, { cause: error });
  }
  workspace.remove();
}

await runToEnd(main);

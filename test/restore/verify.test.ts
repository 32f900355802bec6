import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import type { VerifyReport } from '../../src/restore/verify.js';
import { MAX_LISTED } from '../../src/restore/worker-pool.js';
import { build, program, requireAll } from '../support/requirements.js';
import { chunkFile, testBytes, writeTree, xxh64 } from '../support/trees.js';
import { built, errorOf, RecordingContext, temporaryDirectory } from './built.js';
import { CHUNK, CHUNKS, demoContent, demoTree, editManifest, flipBit, UUID, XML } from './demo-tree.js';

type Module = typeof import('../../src/commands/verify.js');
let runVerify: Module['runVerify'];
let verifyCommand: Module['verifyCommand'];

beforeAll(async () => {
  await requireAll(build, program('xxhsum', 'xxhash'));
  ({ runVerify, verifyCommand } = await built<Module>('commands/verify'));
});

async function report(options: Parameters<Module['runVerify']>[0]): Promise<VerifyReport> {
  const context = new RecordingContext(true);
  await runVerify(options, context).catch((error: { kind?: string }) => {
    if (error.kind !== 'integrity') throw error;
  });
  return JSON.parse(context.text) as VerifyReport;
}

describe('verify', () => {
  it('says that an intact tree is', async () => {
    const { root } = demoTree();
    const context = new RecordingContext();
    await runVerify({ tree: root }, context);
    expect(context.text).toBe(
      'mail01: snapshot of 2024-05-31T22:15:00Z, crash-consistent\nvda: 2.7 MiB, 700 of 700 chunks read and right\nintact\n',
    );
    expect(context.messages).toEqual([expect.stringMatching(/^progress: verifying vda ([0-9]+) of \1$/)]);
  });

  it('agrees with xxhsum', async () => {
    const { root, chunk } = demoTree();
    await run('xxhsum', ['-c', '--quiet', 'vda.xxh64'], { cwd: root });
    flipBit(chunk(3));
    const { exitCode } = await run('xxhsum', ['-c', '--quiet', 'vda.xxh64'], { cwd: root, accept: [1] });
    expect([exitCode, (await report({ tree: root })).intact]).toEqual([1, false]);
  });

  it('names everything that is wrong in words', async () => {
    const { root, chunk } = demoTree();
    flipBit(chunk(3));
    for (const index of [20, 21, 22]) fs.rmSync(chunk(index));
    fs.writeFileSync(path.join(root, 'notes'), '');
    const context = new RecordingContext();
    const error = await errorOf(runVerify({ tree: root }, context), 'integrity');
    expect(error.message).toBe(`${root} has 5 problems`);
    expect(context.text.split('\n').slice(1)).toEqual([
      'vda: 2.7 MiB, 696 of 700 chunks read and right',
      expect.stringMatching(
        /^vda\/000000\/00000003 is corrupt: expected hash [0-9a-f]{16}, found [0-9a-f]{16}$/,
      ),
      'vda/000000/00000014 to vda/000000/00000016: 3 chunks are missing',
      'notes does not belong to the tree',
      'DAMAGED',
      '',
    ]);
  });

  it('accepts a UUID in upper case, a tree without XML and one without chunks', async () => {
    const { root } = demoTree();
    editManifest(root, (manifest) => void Object.assign(manifest, { uuid: UUID.toUpperCase() }));
    expect((await report({ tree: root })).intact).toBe(true);
    const empty = path.join(temporaryDirectory(), 'empty');
    writeTree(empty, { disks: [{ target: 'disk0', content: new Uint8Array() }] });
    expect(await report({ tree: empty })).toMatchObject({
      intact: true,
      disks: [{ chunks: 0, verified: 0 }],
    });
    fs.rmdirSync(path.join(empty, 'disk0'));
    expect((await report({ tree: empty })).problems).toMatchObject([{ kind: 'disk', path: 'disk0' }]);
  });

  it.each<[string, (root: string) => void, RegExp]>([
    [
      'of a newer format',
      (root) => editManifest(root, (manifest) => void Object.assign(manifest, { version: 3 })),
      /^install a newer chunkmount/,
    ],
    [
      'that is not there',
      (root) => fs.rmSync(path.join(root, 'manifest.json')),
      /^give the directory that holds it/,
    ],
  ])('says what to do about a manifest %s', async (_, damage, hint) => {
    const { root } = demoTree();
    damage(root);
    expect(await errorOf(runVerify({ tree: root }, new RecordingContext()), 'integrity')).toMatchObject({
      hint: expect.stringMatching(hint),
    });
    expect((await report({ tree: root })).problems).toMatchObject([{ hint: expect.stringMatching(hint) }]);
  });

  it('counts all bad lines of a sums file, more than it lists', async () => {
    const { root } = demoTree(Buffer.alloc(1500 * CHUNK));
    const sums = path.join(root, 'vda.xxh64');
    fs.writeFileSync(sums, fs.readFileSync(sums, 'latin1').replaceAll('\n', '\r\n'));
    const { problemCount, problems } = await report({ tree: root });
    // The first of them is the size of the file.
    expect(problemCount).toBe(1 + 1500);
    expect(problems).toHaveLength(1 + 1000);
  });

  it('counts all damaged chunks, more than it lists', async () => {
    const root = path.join(temporaryDirectory(), 'demo');
    writeTree(root, { disks: [{ target: 'vda', content: new Uint8Array(0) }] });
    const chunkCount = MAX_LISTED + 5;
    editManifest(root, ({ disks }) => {
      Object.assign((disks as object[])[0]!, { size: chunkCount * CHUNK, chunkSize: CHUNK, chunkCount });
    });
    const lines = Array.from({ length: chunkCount }, (_, i) => `${'0'.repeat(16)}  ${chunkFile('vda', i)}\n`);
    fs.writeFileSync(path.join(root, 'vda.xxh64'), lines.join(''));
    const { problemCount, problems } = await report({ tree: root });
    expect([problemCount, problems.length]).toEqual([chunkCount, MAX_LISTED]);
  });

  it('does not resolve entities in domain XML', async () => {
    const { root } = demoTree();
    const xml = path.join(root, 'mail01.xml');
    fs.writeFileSync(
      xml,
      `<!DOCTYPE domain [<!ENTITY e SYSTEM "file:///etc/hostname">]>\n<domain><name>&e;</name></domain>`,
    );
    const { problems } = await report({ tree: root });
    expect(problems).toMatchObject([{ kind: 'xml', path: 'mail01.xml' }]);
  });

  it('names domain XML of which libvirt would take more than we see', async () => {
    const { root } = demoTree();
    const xml = path.join(root, 'mail01.xml');
    fs.writeFileSync(xml, XML.replace('</domain>', '<devices/><devices><filesystem/></devices></domain>'));
    const { problems } = await report({ tree: root });
    const message = 'mail01.xml: the XML of a <domain> has more than one <devices> in its <domain>';
    expect(problems).toEqual([{ kind: 'xml', path: 'mail01.xml', message }]);
  });

  it('looks at the disks that it is told to', async () => {
    const root = path.join(temporaryDirectory(), 'two');
    const disks = ['vda', 'vdb'].map((target, i) => ({ target, content: testBytes(100_000, i) }));
    writeTree(root, { disks });
    flipBit(path.join(root, chunkFile('vdb', 0)));
    expect(await report({ tree: root, disks: ['vda'] })).toMatchObject({
      intact: true,
      disks: [{ disk: 'vda' }],
    });
    expect(await report({ tree: root, disks: ['vdb'] })).toMatchObject({
      intact: false,
      disks: [{ disk: 'vdb' }],
    });
    await errorOf(runVerify({ tree: root, disks: ['vdc'] }, new RecordingContext()), 'usage');
  });

  it('reads a share of the chunks with --sample, others each time', async () => {
    const { root } = demoTree();
    for (const share of [0.05, 0.5, 0.999, 1]) {
      const [disk] = (await report({ tree: root, sample: share })).disks;
      expect(Math.abs(disk!.verified - CHUNKS * share)).toBeLessThanOrEqual(1);
    }
  });

  it('stops when the user wants it to', async () => {
    const { root } = demoTree();
    const context = new RecordingContext();
    context.controller.abort();
    await errorOf(runVerify({ tree: root }, context), 'failed');
    expect(context.text).toBe('');
  });

  it.each(['5', '0%', '101%', '-1%', '1e1%', ''])('refuses --sample=%s', async (sample) => {
    const command = verifyCommand(() => new RecordingContext());
    await errorOf(command.parseAsync([`--sample=${sample}`, 'tree'], { from: 'user' }), 'usage');
  });
});

describe('verify --against', () => {
  it('is content with a copy', async () => {
    const { root, beside } = demoTree();
    fs.cpSync(root, beside('copy'), { recursive: true });
    expect(await report({ tree: beside('copy'), against: root })).toMatchObject({
      intact: true,
      against: { tree: root, equal: true, differenceCount: 0 },
    });
    expect((await report({ tree: root })).against).toBeNull();
  });

  it('names the chunks that differ, although each tree is right by itself', async () => {
    const old = demoTree();
    const content = demoContent();
    content.fill(1, 7 * CHUNK, 9 * CHUNK);
    const later = demoTree(content);
    const { problems, ...rest } = await report({ tree: later.root, against: old.root });
    const against = { tree: old.root, equal: false, differenceCount: 2 };
    expect(rest).toMatchObject({ intact: true, against, problemCount: 2 });
    const hash = (bytes: Buffer, chunk: number) => xxh64(bytes.subarray(chunk * CHUNK, (chunk + 1) * CHUNK));
    expect(problems).toEqual(
      [7, 8].map((chunk) => ({
        kind: 'differs',
        disk: 'vda',
        chunk,
        path: chunkFile('vda', chunk),
        expected: hash(old.content, chunk),
        found: hash(content, chunk),
      })),
    );
  });

  it('says of an intact tree that it is, and not equal; of a damaged one that it is damaged', async () => {
    const old = demoTree();
    const content = demoContent();
    content.fill(1, 7 * CHUNK, 9 * CHUNK);
    const later = demoTree(content);
    const context = new RecordingContext();
    const options = { tree: later.root, against: old.root };
    const unequal = await errorOf(runVerify(options, context), 'integrity');
    expect(unequal.message).toBe(`${later.root} is intact, but not equal to ${old.root}: 2 differences`);
    expect(unequal.hint).toContain(`chunkmount diff ${old.root} ${later.root}`);
    expect(unequal.hint).not.toMatch(/missing or damaged|chunkmount restore/);
    expect(context.text).toMatch(/ here, [0-9a-f]{16} there\nintact, but not equal to \S+\n$/);
    expect(context.text).toContain(`\nintact, but not equal to ${old.root}\n`);
    flipBit(later.chunk(3));
    const again = new RecordingContext();
    const damaged = await errorOf(runVerify(options, again), 'integrity');
    expect(damaged.message).toBe(`${later.root} has 3 problems`);
    expect(again.text).toMatch(/\nDAMAGED\n$/);
    const against = { equal: false, differenceCount: 2 };
    expect(await report(options)).toMatchObject({ intact: false, against, problemCount: 3 });
  });

  it('sees that the disk has grown, or is not there', async () => {
    const old = demoTree();
    const grown = demoTree(Buffer.concat([old.content, Buffer.alloc(10 * CHUNK)]));
    const { problems } = await report({ tree: grown.root, against: old.root });
    expect(problems.map((problem) => 'chunk' in problem && problem.chunk)).toEqual(
      Array.from({ length: 11 }, (_, i) => CHUNKS - 1 + i),
    );
    const other = path.join(temporaryDirectory(), 'other');
    writeTree(other, { disks: [{ target: 'vdb', content: old.content }] });
    expect((await report({ tree: old.root, against: other })).problems).toMatchObject([
      { kind: 'disk', path: 'vda' },
      { kind: 'disk', path: 'vdb' },
    ]);
  });

  it('says before it reads anything that the other tree cannot be compared with', async () => {
    const { root } = demoTree();
    const others = [demoTree(), demoTree(demoContent(), 2 * CHUNK)] as const;
    fs.truncateSync(path.join(others[0].root, 'vda.xxh64'), 100);
    for (const [position, kind] of (['integrity', 'usage'] as const).entries()) {
      const context = new RecordingContext();
      await errorOf(runVerify({ tree: root, against: others[position]!.root }, context), kind);
      expect(context.messages).toEqual([]);
    }
  });

  it('sees that a disk is missing, unless it is told which ones to look at', async () => {
    const directory = temporaryDirectory();
    const [tree, against] = ['one', 'two'].map((name) => path.join(directory, name)) as [string, string];
    const disks = ['vda', 'vdb'].map((target, i) => ({ target, content: testBytes(100_000, i) }));
    writeTree(tree, { disks: disks.slice(0, 1) });
    writeTree(against, { disks });
    const message = `${tree} has no disk vdb`;
    expect(await report({ tree, against })).toMatchObject({
      intact: true,
      against: { equal: false, differenceCount: 1 },
      problemCount: 1,
      problems: [{ kind: 'disk', path: 'vdb', message }],
    });
    expect((await report({ tree, against, disks: ['vda'] })).intact).toBe(true);
  });
});

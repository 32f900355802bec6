import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { run } from '../../src/host/exec.js';
import { TestChunkmount } from '../support/chunkmount.js';
import { build, requireAll, root } from '../support/requirements.js';

const SIZE = 1024 * 1024;

describe('chain restore', () => {
  const chunkmount = new TestChunkmount();
  const chain = chunkmount.path('chain');
  let to: string;
  let count = 0;

  /** A copy of a disk, as chain.json has it. */
  async function copy(target: string, number: string) {
    const file = `${target}.${number}.qcow2`;
    const image = `${chain}/${file}`;
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(SIZE)]);
    const content = fs.readFileSync(image);
    const sha256 = createHash('sha256').update(content).digest('hex');
    const { mtimeMs: mtime } = fs.statSync(image);
    return { target, file, backing: null, size: content.length, sha256, mtime, virtualSize: SIZE };
  }

  const restore = (args: readonly string[], env: Readonly<Record<string, string>> = {}) =>
    chunkmount.run(['chain', 'restore', chain, ...args], env);

  beforeAll(async () => {
    await requireAll(root, build);
    fs.mkdirSync(chain);
    const points = [];
    for (const [number, time] of [
      ['0001', '2026-11-20T22:00:00.000Z'],
      ['0002', '2026-11-20T23:30:00.000Z'],
    ] as const) {
      const disks = [await copy('vda', number), await copy('vdb', number)];
      const about = { consistency: 'crash', definition: `${number}.xml` };
      points.push({ number: Number(number), id: `s${number}`, time, ...about, disks });
    }
    const record = { format: 'chunkmount-chain', version: 1, name: 'mail01', uuid: 'u', points };
    fs.writeFileSync(`${chain}/chain.json`, JSON.stringify(record));
  });

  beforeEach(() => {
    to = chunkmount.path(`to-${++count}`);
    fs.mkdirSync(to);
  });

  afterAll(() => chunkmount.close());

  it.each(['UTC', 'America/New_York', 'Asia/Tokyo'])(
    'takes a time without a zone as UTC in %s',
    async (TZ) => {
      const { stdout } = await restore(['--json', '--at=2026-11-20T23:00:00', `--to=${to}`], { TZ });
      expect(JSON.parse(stdout)).toMatchObject({ point: 1 });
    },
  );

  it('looks at the places of all disks before it reads or writes anything', async () => {
    fs.writeFileSync(`${to}/vdb.raw`, 'mine');
    expect(await restore([`--to=${to}`])).toMatchObject({
      exitCode: 1,
      stderr: expect.stringContaining(`${to}/vdb.raw exists already`),
    });
    expect(fs.readdirSync(to)).toEqual(['vdb.raw']);
    const nowhere = await restore(['--disk=vda', `--to=${to}/nowhere/vda.raw`]);
    expect(nowhere).toMatchObject({
      exitCode: 2,
      stderr: expect.stringContaining(`${to}/nowhere is no directory`),
    });
  });

  it('removes what a killed one left of the same image, and nothing else', async () => {
    // The largest number of a process is below 2^22: see proc(5), pid_max.
    const left = ['.vda.raw.4194305.part'];
    const kept = [
      `.vda.raw.${process.pid}.part`,
      '.vdb.raw.4194305.part',
      '.vda.raw.part',
      '.x.vda.raw.4194305.part',
    ];
    for (const name of [...left, ...kept]) fs.writeFileSync(`${to}/${name}`, '');
    expect(await restore(['--disk=vda', `--to=${to}`])).toMatchObject({ exitCode: 0 });
    expect(fs.readdirSync(to).sort()).toEqual([...kept, 'vda.raw'].sort());
  });

  it('keeps owner and mode of a file that it replaces', async () => {
    const image = `${to}/vda.raw`;
    fs.writeFileSync(image, '');
    fs.chmodSync(image, 0o640);
    fs.chownSync(image, 12, 34);
    expect(await restore(['--disk=vda', `--to=${image}`, '--force'])).toMatchObject({ exitCode: 0 });
    const { uid, gid, mode, size } = fs.statSync(image);
    expect({ uid, gid, mode: mode & 0o777, size }).toEqual({ uid: 12, gid: 34, mode: 0o640, size: SIZE });
  });
});

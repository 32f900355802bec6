import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { temporaryDirectory, writeRaw } from '../support/images.js';
import { build, program, requireAll } from '../support/requirements.js';
import { durableCalls } from '../support/system-calls.js';

const MIB = 1024 * 1024;

let root: string;

beforeAll(() => requireAll(build, program('strace'), program('qemu-img', 'qemu-utils')));
beforeEach(() => {
  root = temporaryDirectory();
});

afterEach(() => fs.rmSync(root, { recursive: true }));

const RECORD = 'fdatasync(<./journal.jsonl>)';

/** Calls of replaceFile. */
function replaced(directory: string, name: string): string[] {
  const temporary = `${directory}/.${name}.N.tmp`;
  return [`fsync(<${temporary}>)`, `rename("${temporary}", "${directory}/${name}")`, `fsync(<${directory}>)`];
}

describe('what a chain has is on the disk', () => {
  it('before its point is valid, and an image before it has its name', async () => {
    const image = writeRaw(path.join(root, 'vda.raw'), MIB);
    fs.mkdirSync(path.join(root, 'mail01'));
    const code = `import { Journal } from 'build/session/journal.js';
      import { silentReporter as reporter } from 'build/report/reporter.js';
      import { acceptPoint } from 'build/chain/accept-point.js';
      import { readChainRecord } from 'build/chain/chain-record.js';
      import { copyDisk } from 'build/chain/copy-disk.js';
      import { restorePoint } from 'build/chain/restore-point.js';
      const journal = new Journal('${root}/journal.jsonl');
      const directory = '${root}/mail01';
      const common = { target: 'vda', number: 1, sessionId: 's1', journal, reporter };
      const method = { kind: 'full' };
      const made = await copyDisk({ ...common, image: ${JSON.stringify(image)}, method, directory });
      const point = {
        number: 1,
        id: 's1',
        time: '2026-11-20T22:00:00.000Z',
        consistency: 'crash',
        definition: '0001.xml',
        disks: [made.copy],
      };
      const live = { format: 'chunkmount-live-chain', version: 1, uuid: 'u', directory, disks: [] };
      const parts = [{ part: '.vda.0001.qcow2.s1.part', file: 'vda.0001.qcow2' }];
      const liveFile = '${root}/live.json';
      acceptPoint({ name: 'mail01', directory, point, parts, liveFile, live, overlays: [] }, journal);
      const to = '${root}/restored.raw';
      const restore = { directory, copy: made.copy, to, format: 'raw', force: false, reporter };
      await restorePoint(restore, readChainRecord(directory));`;
    const place = './mail01';
    const part = `${place}/.vda.0001.qcow2.s1.part`;
    const restored = './.restored.raw.N.part';
    const calls = (await durableCalls(root, code)).map((call) =>
      call.replace(/\.[0-9]+\.(tmp|part)/, '.N.$1'),
    );
    // qemu-img brings its own to the disk, when it likes to.
    const ours = calls.filter((call) => !call.startsWith(`fdatasync(<${place}`) && !call.startsWith('mkdir'));
    expect(ours.slice(1)).toEqual([
      // The copy is begun, made, and complete; then its point is valid.
      RECORD,
      `fsync(<${part}>)`,
      RECORD,
      RECORD,
      `rename("${part}", "${place}/vda.0001.qcow2")`,
      `fsync(<${place}>)`,
      ...replaced(place, 'chain.json'),
      ...replaced('.', 'live.json'),
      RECORD,
      `fsync(<${restored}>)`,
      `rename("${restored}", "./restored.raw")`,
      'fsync(<.>)',
    ]);
  });
});

import * as fs from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { build, program, requireAll } from '../support/requirements.js';
import { durableCalls } from '../support/system-calls.js';
import { DEMO_SIZE, demoTree } from './demo-tree.js';

beforeAll(() => requireAll(build, program('strace')));

const RECORD = 'fdatasync(<./journal.jsonl>)';

describe('what is said to be there is on the disk', () => {
  it.each(['delta', 'force'])('a block device or file that is overwritten: %s', async (how) => {
    const { directory, root, beside } = demoTree();
    fs.writeFileSync(beside('disk.img'), Buffer.alloc(DEMO_SIZE));
    const code = `import { silentReporter as reporter } from 'build/report/reporter.js';
      import { overwriteTarget } from 'build/restore/overwrite-target.js';
      import { openSource } from 'build/restore/open-source.js';
      import { examineTarget } from 'build/restore/target.js';
      import { Tree } from 'build/restore/tree.js';
      const source = await openSource(Tree.open('${root}'), 'vda');
      const request = { to: '', format: 'raw', keepGoing: false, force: false, delta: false, ${how}: true };
      const signal = new AbortController().signal;
      await overwriteTarget({ source, request, reporter, signal }, examineTarget('${beside('disk.img')}'));`;
    expect(await durableCalls(directory, code)).toEqual(['fsync(<./disk.img>)']);
  });

  it('a file of a VM that is booted, before the journal says which one it is', async () => {
    const { directory, beside } = demoTree();
    const code = `import { Journal } from 'build/session/journal.js';
      import { makeBootFile } from 'build/restore/boot-file.js';
      const journal = new Journal('${beside('journal.jsonl')}');
      const fill = async () => {};
      await makeBootFile({ file: '${beside('overlay.qcow2')}', connect: undefined, journal, fill });`;
    const calls = await durableCalls(directory, code);
    const named = calls.map((call) => call.replace(/overlay\.qcow2\.[0-9a-f]{16}/, 'overlay.qcow2.RANDOM'));
    // The directory is that of the journal, too.
    expect(named.slice(named.indexOf(RECORD))).toEqual([
      RECORD,
      'fsync(<./.overlay.qcow2.RANDOM>)',
      RECORD,
      'fsync(<.>)',
    ]);
  });
});

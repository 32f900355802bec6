import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, afterEach, beforeAll, expect } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { noise } from '../support/images.js';
import { fuseDevice, program, requireAll, root } from '../support/requirements.js';
import { traces } from './expectations.js';

/** To be called in a `describe`: an image for sessions named `demo`, of which each test must leave nothing. */
export function useDemoImage() {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');
  const marker = chunkmount.path('marker');
  const tree = chunkmount.tree('demo');

  beforeAll(async () => {
    await requireAll(root, fuseDevice, program('qemu-img', 'qemu-utils'));
    fs.writeFileSync(image, noise(300_000, 7));
  });

  afterEach(async () => {
    const left = traces(chunkmount);
    // One test that fails shall not take the others with it.
    if (left.length > 0) await chunkmount.run(['cleanup', '--all']);
    fs.rmSync(marker, { force: true });
    expect(left).toEqual([]);
  });

  afterAll(() => chunkmount.close());

  return {
    chunkmount,
    /** A file that is not there when a test begins. */
    marker,
    tree,
    chunk: path.join(tree, 'disk0/000000/00000000'),
    given: [`--image=${image}`, '--name=demo'],
    cleanup: () => chunkmount.run(['cleanup', '--name=demo']),
  };
}

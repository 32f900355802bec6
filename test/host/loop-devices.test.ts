import * as fs from 'node:fs';
import * as path from 'node:path';
import { beforeAll, expect, it, onTestFinished } from 'vitest';
import { loopDevicesBelow } from '../../src/host/loop-devices.js';
import { loopDevices, temporaryDirectory, withLoopDevice } from '../support/images.js';
import { requireAll, root } from '../support/requirements.js';

beforeAll(() => requireAll(root, loopDevices));

it('a loop device is found by the directory that its image is below, and by no other', async () => {
  const directory = temporaryDirectory();
  onTestFinished(() => fs.rmSync(directory, { recursive: true }));
  const tree = path.join(directory, 'tree');
  fs.mkdirSync(tree);
  const image = path.join(tree, 'image');
  fs.writeFileSync(image, Buffer.alloc(1024 * 1024));
  await withLoopDevice(image, async (device) => {
    expect(loopDevicesBelow(tree)).toEqual([device]);
    expect(loopDevicesBelow(directory)).toEqual([device]);
    expect(loopDevicesBelow(path.join(directory, 'tre'))).toEqual([]);
  });
  expect(loopDevicesBelow(tree)).toEqual([]);
});

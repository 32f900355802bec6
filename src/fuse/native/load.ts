import { createRequire } from 'node:module';
import { constants } from 'node:os';
import type Fuse from 'fuse-native';
import { failed, messageOf, systemCode } from '../../errors.js';

/** Keeps the library although it is no Node addon: see dlopen(3). Node does not name it. */
const RTLD_NODELETE = 0x1000;

/**
 * Loads fuse-native, which needs libfuse.so.2: the system's, or else the one that it brings along but does not find. Throws
 * when it cannot be had.
 */
export function loadFuseNative(): typeof Fuse {
  const require = createRequire(import.meta.url);
  try {
    try {
      return require('fuse-native');
    } catch (error) {
      if (systemCode(error) !== 'ERR_DLOPEN_FAILED') throw error;
      loadBundledLibrary(createRequire(require.resolve('fuse-native')));
      return require('fuse-native');
    }
  } catch (error) {
    throw failed(`the native transport cannot be loaded: ${messageOf(error).split('\n', 1)[0]}`, {
      hint: 'it needs the optional npm package fuse-native (x86-64 only), which npm leaves out where its script fails: npm install -g --ignore-scripts; or run as root with --transport=kernel',
      cause: error,
    });
  }
}

/** Afterwards the dynamic linker knows it by its name. */
function loadBundledLibrary(require: NodeJS.Require): void {
  const { lib } = require('fuse-shared-library') as { lib: string };
  try {
    process.dlopen({ exports: {} }, lib, constants.dlopen.RTLD_NOW | RTLD_NODELETE);
  } catch {
    // Node always complains that it is no addon; whether it was loaded shows next.
  }
}

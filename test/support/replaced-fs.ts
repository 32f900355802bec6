import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { onTestFinished } from 'vitest';

/** Puts another function in the place of one of node:fs, for every module, until the test ends or the returned function is called. */
export function replaceInFs<Name extends keyof typeof fs>(name: Name, replacement: unknown): () => void {
  const original = fs[name];
  const put = (value: unknown) => {
    Object.assign(fs, { [name]: value });
    syncBuiltinESMExports();
  };
  const restore = () => put(original);
  put(replacement);
  onTestFinished(restore);
  return restore;
}

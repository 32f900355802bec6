// What is to be said of the licences of npm packages that go out with ours.
import * as fs from 'node:fs';
import * as path from 'node:path';

/** Names of the files that a package says its licence in. */
export const LICENCE = /^(licen[cs]e|copying|notice)/i;

export function readPackage(directory) {
  return JSON.parse(fs.readFileSync(path.join(directory, 'package.json'), 'utf8'));
}

/** The licence of the package in a directory, as text. */
export function licenceOf(directory) {
  const { name, version, license = 'not said' } = readPackage(directory);
  const file = fs.readdirSync(directory).find((file) => LICENCE.test(file));
  const text = file === undefined ? '' : `\n${fs.readFileSync(path.join(directory, file), 'utf8').trim()}\n`;
  return `${'-'.repeat(78)}\n${name} ${version}, licence: ${license}\n${text}`;
}

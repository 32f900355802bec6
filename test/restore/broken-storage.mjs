/**
 * Loaded into a program with `node --import`: reading the file or directory whose path ends with $BROKEN fails as on a disk that is
 * broken, which no file system does on request.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

const broken = process.env.BROKEN;

function isBroken(fd) {
  return fs.readlinkSync(`/proc/self/fd/${fd}`).endsWith(broken);
}

function fail(call) {
  throw Object.assign(new Error(`EIO: i/o error, ${call}`), { code: 'EIO', errno: -5, syscall: call });
}

const { readSync, readFileSync, opendirSync } = fs;
fs.readSync = (fd, ...others) => (isBroken(fd) ? fail('read') : readSync(fd, ...others));
fs.readFileSync = (file, ...others) =>
  typeof file === 'number' && isBroken(file) ? fail('read') : readFileSync(file, ...others);
fs.opendirSync = (directory, ...others) => {
  const handle = opendirSync(directory, ...others);
  if (fs.realpathSync(directory).endsWith(broken)) handle.readSync = () => fail('scandir');
  return handle;
};
syncBuiltinESMExports();

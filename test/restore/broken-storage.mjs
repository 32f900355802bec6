/**
 * Loaded into a program with `node --import`: reading the file or directory whose path ends with $BROKEN fails as on a disk that is
 * broken, or, if it is $BROKEN_CALL, syncing or enlarging it. No file system does that on request.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

const broken = process.env.BROKEN;

function isBroken(fd) {
  return fs.readlinkSync(`/proc/self/fd/${fd}`).endsWith(broken);
}

function failure(syscall) {
  return Object.assign(new Error(`EIO: i/o error, ${syscall}`), { code: 'EIO', errno: -5, syscall });
}

function fail(syscall) {
  throw failure(syscall);
}

const call = process.env.BROKEN_CALL ?? 'read';
const { readSync, readFileSync, opendirSync, fsync, ftruncateSync } = fs;
if (call === 'fsync')
  fs.fsync = (fd, done) => fsync(fd, (error) => (isBroken(fd) ? done(failure(call)) : done(error)));
if (call === 'ftruncate')
  fs.ftruncateSync = (fd, size) => (isBroken(fd) && size > 0 ? fail(call) : ftruncateSync(fd, size));
if (call === 'read') breakReading();

function breakReading() {
  fs.readSync = (fd, ...others) => (isBroken(fd) ? fail('read') : readSync(fd, ...others));
  fs.readFileSync = (file, ...others) =>
    typeof file === 'number' && isBroken(file) ? fail('read') : readFileSync(file, ...others);
  fs.opendirSync = (directory, ...others) => {
    const handle = opendirSync(directory, ...others);
    if (fs.realpathSync(directory).endsWith(broken)) handle.readSync = () => fail('scandir');
    return handle;
  };
}
syncBuiltinESMExports();

import { constants } from 'node:os';

/** Error numbers of Linux as file system methods answer them: negative. ENOATTR is ENODATA on Linux. */
export const EIO = -constants.errno.EIO;
export const ENOENT = -constants.errno.ENOENT;
export const ENODATA = -constants.errno.ENODATA;
export const ENOTDIR = -constants.errno.ENOTDIR;
export const EISDIR = -constants.errno.EISDIR;
export const EINVAL = -constants.errno.EINVAL;
export const ENXIO = -constants.errno.ENXIO;
export const ENOSYS = -constants.errno.ENOSYS;
export const EROFS = -constants.errno.EROFS;
export const ERANGE = -constants.errno.ERANGE;
export const ENOTTY = -constants.errno.ENOTTY;

/* Makes one system call on files below a folder fail: the n-th that opens for writing, writes, syncs, renames, changes
 * a mode, makes a folder or removes a file. Loaded with LD_PRELOAD; armed through fault_arm. See break_commits.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[4096];
static long at = -1, seen;
static int code;
static char names[512][16];

/* n < 0: only count; error 0: the process is killed at the call */
void fault_arm(const char *folder, long n, int error) {
  snprintf(root, sizeof root, "%s", folder);
  at = n, code = error, seen = 0;
}
long fault_seen(void) { return seen; }
const char *fault_name(long n) { return names[n]; }

static int here(const char *path) { return root[0] && path && !strncmp(path, root, strlen(root)); }
static int here_fd(int fd) {
  char link[64], path[4096];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return here(path);
}
static int fault(const char *name) {
  if (seen < 512) snprintf(names[seen], 16, "%s", name);
  if (seen++ != at) return 0;
  if (!code) kill(getpid(), SIGKILL);
  errno = code;
  return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

static mode_t mode_of(int flags, va_list list) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; }
#define OPEN(name)                                                                   \
  int name(const char *path, int flags, ...) {                                       \
    REAL(name);                                                                      \
    va_list list; va_start(list, flags); mode_t mode = mode_of(flags, list); va_end(list); \
    if (here(path) && flags & (O_WRONLY | O_RDWR | O_CREAT) && fault("open")) return -1; \
    return real(path, flags, mode);                                                  \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  if (here_fd(fd)) {
    if (seen == at && size > 1) real(fd, data, size / 2);  /* a torn write, then the error or the end */
    if (fault("write")) return -1;
  }
  return real(fd, data, size);
}
int fsync(int fd) { REAL(fsync); return here_fd(fd) && fault("fsync") ? -1 : real(fd); }
int rename(const char *from, const char *to) { REAL(rename); return here(to) && fault("rename") ? -1 : real(from, to); }
int chmod(const char *path, mode_t mode) { REAL(chmod); return here(path) && fault("chmod") ? -1 : real(path, mode); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return here(path) && fault("mkdir") ? -1 : real(path, mode); }
int unlink(const char *path) { REAL(unlink); return here(path) && fault("unlink") ? -1 : real(path); }

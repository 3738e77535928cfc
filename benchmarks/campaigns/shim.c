/* Faults of the file system for paths below one folder, and a clock that goes back; loaded with LD_PRELOAD.

   fault_arm(folder, kind, at, error, lasts) makes the at-th call of a kind below the folder fail with the error number,
   and later ones where `lasts`. An error of -1 is a short write, -2 a slow call. fault_count(kind) counts the calls.
   FAULTS_CLOCK_BACK=SECONDS lets the wall clock go back by so much at every other reading. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { OPEN, WRITE, SYNC, RENAME, READ, KINDS };
static char folder[PATH_MAX];
static int armed_kind = -1, armed_error, armed_lasts;
static long armed_at, counts[KINDS];

void fault_arm(const char *below, int kind, long at, int error, int lasts) {
  strncpy(folder, below, PATH_MAX - 1);
  memset(counts, 0, sizeof counts);
  armed_kind = kind, armed_at = at, armed_error = error, armed_lasts = lasts;
}
long fault_count(int kind) { return counts[kind]; }

static int below(const char *path) { return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0; }
static int of_descriptor(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = folder[0] ? readlink(link, path, PATH_MAX - 1) : -1;
  if (n < 0) return 0;
  path[n] = 0;
  return below(path);
}
/* The error of this call; 0 for none. */
static int fault(int kind) {
  long now = __sync_add_and_fetch(&counts[kind], 1);
  if (kind != armed_kind || now < armed_at || (now > armed_at && !armed_lasts)) return 0;
  if (armed_error == -2) { struct timespec slow = {0, 300000000}; nanosleep(&slow, NULL); return 0; }
  return armed_error;
}
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    if (WRITES(flags) && below(path)) { int error = fault(OPEN); if (error > 0) { errno = error; return -1; } } \
    return real(path, flags, mode); }
OPENS(open) OPENS(open64)
#define OPENATS(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(name); va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
    if (WRITES(flags) && below(path)) { int error = fault(OPEN); if (error > 0) { errno = error; return -1; } } \
    return real(at, path, flags, mode); }
OPENATS(openat) OPENATS(openat64)
#define FOPENS(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    if (strpbrk(mode, "wa+") && below(path)) { int error = fault(OPEN); if (error > 0) { errno = error; return NULL; } } \
    return real(path, mode); }
FOPENS(fopen) FOPENS(fopen64)

ssize_t write(int fd, const void *data, size_t n) {
  REAL(write);
  int error = of_descriptor(fd) ? fault(WRITE) : 0;
  if (error > 0) { errno = error; return -1; }
  return real(fd, data, error == -1 && n > 1 ? n / 2 : n);
}
#define PWRITES(name, offset) \
  ssize_t name(int fd, const void *data, size_t n, offset where) { \
    REAL(name); \
    int error = of_descriptor(fd) ? fault(WRITE) : 0; \
    if (error > 0) { errno = error; return -1; } \
    return real(fd, data, error == -1 && n > 1 ? n / 2 : n, where); }
PWRITES(pwrite, off_t) PWRITES(pwrite64, off64_t)
size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
  REAL(fwrite);
  int error = of_descriptor(fileno(file)) ? fault(WRITE) : 0;
  if (error > 0) { errno = error; return 0; }
  return real(data, size, n, file);
}
#define READS(name, parameters, call) \
  ssize_t name parameters { \
    REAL(name); int error = of_descriptor(fd) ? fault(READ) : 0; \
    if (error > 0) { errno = error; return -1; } \
    return real call; }
READS(read, (int fd, void *data, size_t n), (fd, data, n))
READS(pread, (int fd, void *data, size_t n, off_t where), (fd, data, n, where))
READS(pread64, (int fd, void *data, size_t n, off64_t where), (fd, data, n, where))
#define SYNCS(name) \
  int name(int fd) { \
    REAL(name); int error = of_descriptor(fd) ? fault(SYNC) : 0; \
    if (error > 0) { errno = error; return -1; } \
    return real(fd); }
SYNCS(fsync) SYNCS(fdatasync)
int rename(const char *from, const char *to) {
  REAL(rename);
  int error = below(to) ? fault(RENAME) : 0;
  if (error > 0) { errno = error; return -1; }
  return real(from, to);
}

int clock_gettime(clockid_t which, struct timespec *now) {
  REAL(clock_gettime);
  static long readings, back = -1;
  int result = real(which, now);
  if (back < 0) back = getenv("FAULTS_CLOCK_BACK") ? atol(getenv("FAULTS_CLOCK_BACK")) : 0;
  if (which == CLOCK_REALTIME && back && __sync_add_and_fetch(&readings, 1) % 2 == 0) now->tv_sec -= back;
  return result;
}

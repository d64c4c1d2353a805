/*
 * start-hook: shows an LXC container the generation of its base that is current now.
 *
 * LXC's monitor runs it as lxc.hook.pre-start, at every start and at every reboot from inside, in
 * the monitor's own mount namespace (lxc.monitor.unshare = 1); LXC adds the last three words:
 *     start-hook --store DIR --run DIR --lxc DIR --name NAME --base BASE --ids FIRST:COUNT NAME lxc pre-start
 * It refuses a container that is a copy, is locked by somebody else or still runs; mounts the
 * current generation (with the container's ids, read-only) at RUN/lower and LXC/NAME/overlay at
 * RUN/overlay; and writes the lease RUN/lease/NAME, last. A refusal is exit status 1, no lease, and
 * the reason on standard error and in RUN/hook/NAME.error: a code, what and why, what to do, a line each.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OPEN_DIRECTORY (O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

enum { LOCK_WAIT_MS = 2000, COLLECTOR_WAIT_MS = 20000, LEFTOVER_WAIT_MS = 5000, POLL_MS = 10 };

static struct {
	const char *store, *run, *lxc, *name, *base, *ids;
	unsigned long first, count; /* of the ids; 0 for a privileged container */
} arg;

static int run_fd = -1; /* RUN, once it is open */

/* Whole or not at all. A temporary file that a kill left is truncated by the next writer, who holds the lock. */
static bool write_file(const char *directory, const char *name, const char *text)
{
	char temporary[NAME_MAX + 2];
	const ssize_t length = (ssize_t)strlen(text);
	const int dir = openat(run_fd, directory, OPEN_DIRECTORY);

	snprintf(temporary, sizeof(temporary), ".%s", name);
	int fd = dir < 0 ? -1 : openat(dir, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return false;
	errno = ENOSPC; /* what a short write means */
	bool written = write(fd, text, (size_t)length) == length;
	return close(fd) == 0 && written && renameat(dir, temporary, dir, name) == 0;
}

static __attribute__((noreturn, format(printf, 3, 4))) void
refuse(const char *code, const char *fix, const char *format, ...)
{
	char reason[2048], report[4096], file[NAME_MAX + 1];
	va_list list;

	va_start(list, format);
	vsnprintf(reason, sizeof(reason), format, list);
	va_end(list);
	for (char *c = reason; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = '?';
	fprintf(stderr, "oneroot start-hook: %s (%s)\n", reason, fix);
	if (run_fd >= 0 && arg.name) {
		snprintf(file, sizeof(file), "%s.error", arg.name);
		snprintf(report, sizeof(report), "%s\n%s\n%s\n", code, reason, fix);
		if (!write_file("hook", file, report))
			fprintf(stderr, "oneroot start-hook: the reason could not be recorded: %m\n");
	}
	exit(1);
}

#define SEE_DOCTOR "oneroot doctor"
#define fail(format, ...) refuse("failed", SEE_DOCTOR, format ": %s", ##__VA_ARGS__, strerror(errno))

static __attribute__((format(printf, 2, 3))) void path_of(char path[static PATH_MAX], const char *format, ...)
{
	va_list list;

	va_start(list, format);
	if (vsnprintf(path, PATH_MAX, format, list) >= PATH_MAX)
		refuse("usage", SEE_DOCTOR, "a path is too long");
	va_end(list);
}

static bool is_name(const char *text)
{
	size_t length = strlen(text);

	return length >= 1 && length <= 63 && text[0] != '-' && text[length - 1] != '-' &&
	       strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

/* Digits alone: strtoul would take blanks and signs. */
static bool parse_number(const char *text, const char **end, unsigned long max, unsigned long *value)
{
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*value = strtoul(text, (char **)end, 10);
	return errno == 0 && *value <= max;
}

static bool parse_ids(void)
{
	const char *rest;

	return parse_number(arg.ids, &rest, UINT32_MAX - 1, &arg.first) && *rest == ':' &&
	       parse_number(rest + 1, &rest, UINT32_MAX - 1, &arg.count) && *rest == '\0' &&
	       arg.first + arg.count <= UINT32_MAX - 1 && (arg.first == 0) == (arg.count == 0);
}

/* Exactly these, in this order, and what LXC adds: everything else was changed by hand. */
static void parse_arguments(int argc, char **argv)
{
	static const char *const options[] = { "--store", "--run", "--lxc", "--name", "--base", "--ids" };
	const char **values[] = { &arg.store, &arg.run, &arg.lxc, &arg.name, &arg.base, &arg.ids };
	bool good = argc == 1 + 2 * 6 + 3 && strcmp(argv[14], "lxc") == 0 && strcmp(argv[15], "pre-start") == 0;

	for (int place = 0; good && place < 6; place++) {
		good = strcmp(argv[1 + 2 * place], options[place]) == 0;
		*values[place] = argv[2 + 2 * place];
	}
	if (good && arg.store[0] == '/' && arg.run[0] == '/' && arg.lxc[0] == '/' && is_name(arg.name) &&
	    is_name(arg.base) && parse_ids())
		return;
	arg.name = NULL; /* it must not become a file's name */
	refuse("usage", "remove the container and create it again",
	       "the hook's line in the container's configuration is damaged");
}

static void make_directory(int dir, const char *name, mode_t mode)
{
	if (mkdirat(dir, name, 0700) < 0 ? errno != EEXIST : fchmodat(dir, name, mode, 0) < 0)
		fail("cannot make the directory %s of %s", name, arg.run);
}

/* RUN is empty after a boot, and lxc-autostart may be the first who needs it. */
static void open_run(void)
{
	make_directory(AT_FDCWD, arg.run, 0711);
	run_fd = open(arg.run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (run_fd < 0)
		fail("cannot open %s", arg.run);
	for (const char *const *name = (const char *const[]){ "hook", "lock", "lease", NULL }; *name; name++)
		make_directory(run_fd, *name, 0700);
	make_directory(run_fd, "lower", 0711);
	make_directory(run_fd, "overlay", 0711);
}

static void check_identity(const char *from_lxc)
{
	const char *fix = "copies of a container cannot run: remove it and use oneroot create";
	const char *declared = arg.name, *name = getenv("LXC_NAME"), *config = getenv("LXC_CONFIG_FILE");
	char expected[PATH_MAX];
	struct stat given, own;

	if (!name || !config)
		refuse("usage", "use lxc-start", "not run by LXC: LXC_NAME or LXC_CONFIG_FILE is not set");
	if (strcmp(name, declared) != 0 || strcmp(from_lxc, declared) != 0) {
		arg.name = is_name(name) ? name : NULL; /* the reason belongs to the copy */
		refuse("refused", fix, "the container %s is a copy of %s", name, declared);
	}
	path_of(expected, "%s/%s/config", arg.lxc, declared);
	if (lstat(expected, &own) < 0 || stat(config, &given) < 0)
		fail("cannot read %s and %s", expected, config);
	if (given.st_dev != own.st_dev || given.st_ino != own.st_ino)
		refuse("refused", fix, "started with the configuration %s instead of %s", config, expected);
}

static void check_namespace(void)
{
	struct stat host, own;

	/* Where process 1 may not be looked at, kthreadd is in the first namespace too. */
	if (stat("/proc/self/ns/mnt", &own) < 0 || (stat("/proc/1/ns/mnt", &host) < 0 && stat("/proc/2/ns/mnt", &host) < 0))
		fail("cannot tell mount namespaces apart");
	if (host.st_dev == own.st_dev && host.st_ino == own.st_ino)
		refuse("refused", "put lxc.monitor.unshare = 1 back into the container's configuration",
		       "this is the host's mount namespace, where nothing is mounted for a container");
}

/* Read a whole small file of /proc or of ours; -1 if there is none. */
static ssize_t read_file_at(int dir, const char *path, char *buffer, size_t size)
{
	int fd = openat(dir, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, buffer, size - 1);
	close(fd);
	buffer[length < 0 ? 0 : length] = '\0';
	return length;
}

/* Start time, parent and name of a process; false if there is none, or it waits to be reaped. */
static bool read_stat(unsigned long pid, unsigned long *start, unsigned long *parent, char comm[32])
{
	char path[64], text[1024], state;

	snprintf(path, sizeof(path), "/proc/%lu/stat", pid);
	if (read_file_at(AT_FDCWD, path, text, sizeof(text)) <= 0)
		return false;
	char *open = strchr(text, '('), *close = strrchr(text, ')');
	if (!open || !close)
		return false;
	snprintf(comm, 32, "%.*s", (int)(close - open - 1), open + 1);
	/* proc(5): state (3), ppid (4), 17 fields, starttime (22) */
	return sscanf(close + 1, " %c %lu %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu",
		      &state, parent, start) == 3 && state != 'Z' && state != 'X';
}

/* LXC runs hooks by sh -c "exec …"; a shell that does not replace itself stands between. */
static unsigned long find_monitor(unsigned long *start)
{
	unsigned long pid = (unsigned long)getppid(), parent = 0;
	char comm[32] = "";

	for (; pid > 1 && read_stat(pid, start, &parent, comm); pid = parent)
		if (strcmp(comm, "sh") != 0 && strcmp(comm, "dash") != 0 && strcmp(comm, "bash") != 0)
			return pid;
	refuse("failed", "start the container again", "the LXC monitor that ran the hook is gone");
}

#define nap() nanosleep(&(struct timespec){ .tv_nsec = POLL_MS * 1000000L }, NULL)

static bool lock(int fd, short type, int patience_ms)
{
	struct flock whole = { .l_type = type, .l_whence = SEEK_SET };

	for (int waited = 0; fcntl(fd, F_OFD_SETLK, &whole) < 0; waited += POLL_MS, nap()) {
		if (errno != EAGAIN && errno != EACCES)
			fail("cannot lock in %s/lock", arg.run);
		if (waited >= patience_ms)
			return false;
	}
	return true;
}

static int open_lock(const char *kind, const char *name)
{
	char path[NAME_MAX + 1];

	snprintf(path, sizeof(path), "lock/%s-%s", kind, name);
	int fd = openat(run_fd, path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		fail("cannot open %s/%s", arg.run, path);
	return fd;
}

/* Where the value of a member of JSON that oneroot wrote begins, behind a string's quote; "" without one. */
static const char *json_value(const char *json, const char *key)
{
	char pattern[64];

	snprintf(pattern, sizeof(pattern), "\"%s\": ", key);
	const char *found = strstr(json, pattern);
	return found ? found + strlen(pattern) + (found[strlen(pattern)] == '"') : "";
}

#define utc_now(text) strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S+00:00", gmtime(&(time_t){ time(NULL) }))

/* Returns with the lock held, by us until we exit, or by the one who started us. */
static void take_container_lock(void)
{
	const char *token = getenv("ONEROOT_LOCK_TOKEN"), *verb, *since;
	char text[4096], now[32];
	int fd = open_lock("container", arg.name);

	if (!lock(fd, F_WRLCK, 0)) {
		ssize_t length = pread(fd, text, sizeof(text) - 1, 0);
		text[length < 0 ? 0 : length] = '\0';
		if (token && strlen(token) == 32 && strncmp(json_value(text, "token"), token, 32) == 0)
			return;
		verb = json_value(text, "verb");
		since = json_value(text, "since");
		if (!lock(fd, F_WRLCK, LOCK_WAIT_MS))
			refuse("busy", "wait until that has ended, then start it again",
			       "the container %s is busy: process %ld does “%.*s” since %.*s", arg.name,
			       atol(json_value(text, "pid")), (int)strcspn(verb, "\""), verb, (int)strcspn(since, "\""), since);
	}
	utc_now(now);
	int length = snprintf(text, sizeof(text), "{\"pid\": %d, \"person\": \"lxc-start\", \"verb\": \"start\", "
			      "\"since\": \"%s\", \"token\": \"start-hook\"}", (int)getpid(), now);
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)length, 0) != length)
		fail("cannot write into the lock of %s", arg.name);
}

/* Is a process with ids of this container in a directory of the cgroup tree? */
static int find_process(const char *directory, const struct stat *, int, struct FTW *)
{
	char path[PATH_MAX], procs[4096], map[256];
	const char *rest = procs;
	unsigned long pid, first;

	if (snprintf(path, sizeof(path), "%s/cgroup.procs", directory) >= (int)sizeof(path) ||
	    read_file_at(AT_FDCWD, path, procs, sizeof(procs)) <= 0)
		return 0;
	for (; parse_number(rest, &rest, INT_MAX, &pid) && *rest == '\n'; rest++) {
		snprintf(path, sizeof(path), "/proc/%lu/uid_map", pid);
		if (read_file_at(AT_FDCWD, path, map, sizeof(map)) > 0 && sscanf(map, "%*u %lu", &first) == 1 &&
		    first >= arg.first && first - arg.first < (arg.count ? arg.count : 1))
			return 1;
	}
	return 0;
}

/* Does a process of an earlier run still live? Its cgroup is lxc.payload.NAME or, where systemd runs, one
 * below; -1 … stands behind the name where an empty one was left. Without ids that may be another container's. */
static bool payload_alive(void)
{
	static const char *const mounts[] = { "", "unified/", "pids/", "systemd/", "freezer/", NULL };
	static const char *const suffixes[] = { "", "-1", "-2", "-3" };
	char path[256];

	for (const char *const *mount = mounts; *mount; mount++)
		for (int suffix = 0; suffix < (arg.count ? 4 : 1); suffix++) {
			snprintf(path, sizeof(path), "/sys/fs/cgroup/%slxc.payload.%s%s", *mount, arg.name, suffixes[suffix]);
			if (nftw(path, find_process, 16, FTW_PHYS) > 0)
				return true;
		}
	return false;
}

/* The kernel does not refuse a second mount of one upper (index=off): this does. */
static void check_earlier_run(unsigned long monitor, unsigned long monitor_start, const char *boot)
{
	char path[NAME_MAX + 1], text[4096], comm[32];
	unsigned long pid, start, now, parent;

	snprintf(path, sizeof(path), "lease/%s", arg.name);
	if (read_file_at(run_fd, path, text, sizeof(text)) < 0)
		return; /* never started in this boot, or stopped to the end */
	pid = strtoul(json_value(text, "monitor"), NULL, 10);
	start = strtoul(json_value(text, "monitor_start"), NULL, 10);
	if (strncmp(json_value(text, "boot_id"), boot, strlen(boot)) != 0 || (pid == monitor && start == monitor_start))
		return; /* in a reboot, LXC has seen the end of the former init, and with it of all its processes */
	if (read_stat(pid, &now, &parent, comm) && now == start)
		refuse("refused", "oneroot stop it first", "the container %s runs already, its monitor is process %lu",
		       arg.name, pid);
	for (int waited = 0; payload_alive(); waited += POLL_MS, nap())
		if (waited >= LEFTOVER_WAIT_MS)
			refuse("refused", "find them by their cgroup, lxc.payload.NAME, and end them",
			       "processes of an earlier run of %s still use its files", arg.name);
}

/* Returns a descriptor of the root of the current generation, and its number. */
static int open_generation(unsigned long *number)
{
	char path[PATH_MAX], target[128];
	const char *rest;
	struct stat status;

	path_of(path, "%s/bases/%s", arg.store, arg.base);
	int base = open(path, OPEN_DIRECTORY);
	ssize_t length = base < 0 ? -1 : readlinkat(base, "current", target, sizeof(target) - 1);
	if (length < 0)
		refuse("refused", "oneroot base ls", "the base %s has no current generation: %m", arg.base);
	target[length] = '\0';
	if (strncmp(target, "generations/", 12) != 0 || !parse_number(target + 12, &rest, INT_MAX, number) || *rest)
		refuse("refused", "oneroot base fsck", "the current generation of %s is %s", arg.base, target);
	path_of(path, "%s/generation.json", target);
	if (fstatat(base, path, &status, AT_SYMLINK_NOFOLLOW) < 0)
		refuse("refused", "oneroot base fsck", "generation %lu of %s is gone or incomplete: %m", *number, arg.base);
	path_of(path, "%s/root", target);
	int root = openat(base, path, OPEN_DIRECTORY);
	if (root < 0)
		refuse("refused", "oneroot base fsck", "generation %lu of %s has no root: %m", *number, arg.base);
	return root;
}

static int open_overlay(void)
{
	char path[PATH_MAX];
	struct stat status;
	const char *const fix = "oneroot create makes what is missing";

	path_of(path, "%s/%s/oneroot.json", arg.lxc, arg.name);
	if (lstat(path, &status) < 0)
		refuse("refused", fix, "the container %s has no declaration, %s", arg.name, path);
	path_of(path, "%s/%s/overlay", arg.lxc, arg.name);
	int overlay = open(path, OPEN_DIRECTORY);
	if (overlay < 0 || fstatat(overlay, "work", &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(status.st_mode) ||
	    fstatat(overlay, "upper", &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(status.st_mode))
		refuse("refused", fix, "the container %s has no upper and work directory in %s", arg.name, path);
	/* its root may give / to another user of its own; nobody gives it to one of another range */
	if (arg.count && (status.st_uid < arg.first || status.st_uid - arg.first >= arg.count))
		refuse("refused", "oneroot info shows its id range", "the upper of %s belongs to uid %u, not to its ids %s",
		       arg.name, status.st_uid, arg.ids);
	return overlay;
}

/* Returns a descriptor of a user namespace that maps 0 … COUNT-1 to FIRST …; it lives as long as that. */
static int make_user_namespace(void)
{
	static const char *const maps[] = { "uid_map", "gid_map" };
	char path[64], text[64];
	int until[2], fd, length = snprintf(text, sizeof(text), "0 %lu %lu\n", arg.first, arg.count);

	if (pipe2(until, O_CLOEXEC) < 0)
		fail("cannot make a pipe");
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
	if (child < 0)
		fail("the kernel refuses a user namespace");
	if (child == 0) { /* ends with us, however we end */
		close(until[1]);
		_exit(read(until[0], path, 1) != 0);
	}
	for (int place = 0; place < 2; place++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", (int)child, maps[place]);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, text, (size_t)length) != length || close(fd) < 0)
			fail("cannot map the ids %s", arg.ids);
	}
	snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)child);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("cannot open the user namespace");
	close(until[1]); /* the child ends; LXC's signal mask lets nothing interrupt the wait */
	waitpid(child, NULL, 0);
	return fd;
}

/* After a reboot the former mounts are still here. */
static void detach(const char *target)
{
	while (umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		;
	if (errno != EINVAL) /* which says that nothing is mounted */
		fail("cannot unmount %s", target);
}

static void show(int tree, const char *directory, uint64_t flags, int user_namespace)
{
	char target[PATH_MAX];
	struct mount_attr attributes = { .attr_set = flags | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
					 .propagation = MS_PRIVATE };

	path_of(target, "%s/%s", arg.run, directory);
	detach(target);
	if (user_namespace >= 0) {
		attributes.attr_set |= MOUNT_ATTR_IDMAP;
		attributes.userns_fd = (uint64_t)user_namespace;
	}
	int mount = open_tree(tree, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (mount < 0)
		fail("cannot clone the mount for %s", target);
	if (mount_setattr(mount, "", AT_EMPTY_PATH, &attributes, sizeof(attributes)) < 0)
		fail("cannot set up the mount for %s (has its filesystem idmapped mounts?)", target);
	if (move_mount(mount, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		fail("cannot mount on %s", target);
}

static void write_lease(unsigned long generation, const char *boot, unsigned long monitor, unsigned long start)
{
	char text[1024], now[32];

	utc_now(now);
	snprintf(text, sizeof(text),
		 "{\"schema\": 1, \"container\": \"%s\", \"base\": \"%s\", \"generation\": %lu, \"boot_id\": \"%s\", "
		 "\"monitor\": %lu, \"monitor_start\": %lu, \"taken\": \"%s\"}\n",
		 arg.name, arg.base, generation, boot, monitor, start, now);
	if (!write_file("lease", arg.name, text))
		fail("cannot write the lease of %s", arg.name);
}

int main(int argc, char **argv)
{
	unsigned long generation, monitor, monitor_start = 0;
	char boot[64], error[NAME_MAX + 1];

	umask(077);
	parse_arguments(argc, argv);
	open_run();
	check_identity(argv[13]);
	check_namespace();
	monitor = find_monitor(&monitor_start);
	if (read_file_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", boot, sizeof(boot)) < 36)
		fail("cannot read the id of this boot");
	boot[36] = '\0';
	take_container_lock();
	check_earlier_run(monitor, monitor_start, boot);
	/* Shared with other starts: it keeps the generation from being collected before it is mounted. */
	if (!lock(open_lock("mount", arg.base), F_RDLCK, COLLECTOR_WAIT_MS))
		refuse("busy", "start it again when that has ended", "old generations of %s are being removed", arg.base);
	int root = open_generation(&generation);
	int overlay = open_overlay();
	int users = arg.count ? make_user_namespace() : -1;
	show(root, "lower", MOUNT_ATTR_RDONLY, users);
	show(overlay, "overlay", 0, -1);
	write_lease(generation, boot, monitor, monitor_start);
	snprintf(error, sizeof(error), "hook/%s.error", arg.name);
	unlinkat(run_fd, error, 0); /* an older refusal, if there is one */
	return 0;
}

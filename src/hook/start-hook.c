/*
 * start-hook: shows an LXC container the generation of its base that is current now.
 *
 * LXC's monitor runs it as lxc.hook.pre-start, at every start and every reboot, inside the
 * monitor's own mount namespace (lxc.monitor.unshare = 1):
 *
 *     start-hook --store DIR --run DIR --lxc DIR --name NAME --base BASE --ids FIRST:COUNT  NAME lxc pre-start
 *
 * (the last three words come from LXC). It
 *   1. checks that this is the container it was written for, and no copy of it;
 *   2. takes the container's lock, or sees that its holder is who starts it (ONEROOT_LOCK_TOKEN);
 *   3. sees that no earlier run of the container still has its upper mounted;
 *   4. holds off the collector of old generations, and resolves STORE/bases/BASE/current;
 *   5. mounts the generation at RUN/lower, read-only, with the container's ids, and LXC/NAME/overlay
 *      at RUN/overlay;
 *   6. writes the lease RUN/lease/NAME, last.
 * Whatever goes wrong is a refusal: exit status 1, the reason on standard error and in
 * RUN/hook/NAME.error (line 1 a code, line 2 what and why, line 3 what to do), and no lease.
 *
 * Build: gcc -O2 -static -Wall -Wextra -Werror -o start-hook start-hook.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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

enum { LOCK_WAIT_MS = 2000, COLLECTOR_WAIT_MS = 20000, LEFTOVER_WAIT_MS = 5000, POLL_MS = 10 };

static struct {
	const char *store, *run, *lxc, *name, *base, *ids;
	unsigned long first, count;
} arg;

static int run_fd = -1; /* RUN, once it is open */

/* A stale temporary file is harmless: the next writer, who holds the container's lock, truncates it. */
static int write_file_at(int dir, const char *name, const char *text)
{
	char temporary[NAME_MAX + 1];
	size_t length = strlen(text);

	if (snprintf(temporary, sizeof(temporary), ".%s.new", name) >= (int)sizeof(temporary)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	int fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	ssize_t written = write(fd, text, length);
	if (written >= 0 && (size_t)written != length) {
		errno = ENOSPC;
		written = -1;
	}
	if (close(fd) < 0 || written < 0 || renameat(dir, temporary, dir, name) < 0) {
		int saved = errno;
		unlinkat(dir, temporary, 0);
		errno = saved;
		return -1;
	}
	return 0;
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
	if (run_fd >= 0 && arg.name && snprintf(file, sizeof(file), "%s.error", arg.name) < (int)sizeof(file)) {
		int dir = openat(run_fd, "hook", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		snprintf(report, sizeof(report), "%s\n%s\n%s\n", code, reason, fix);
		if (dir < 0 || write_file_at(dir, file, report) < 0)
			fprintf(stderr, "oneroot start-hook: the reason could not be recorded: %m\n");
	}
	exit(1);
}

#define SEE_DOCTOR "oneroot doctor"
#define fail(format, ...) refuse("failed", SEE_DOCTOR, format ": %s", ##__VA_ARGS__, strerror(errno))

static bool is_name(const char *text)
{
	size_t length = strlen(text);

	if (length < 1 || length > 63 || text[0] == '-' || text[length - 1] == '-')
		return false;
	return strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-") == length;
}

/* Digits alone: strtoul would take blanks, signs and what does not fit. */
static bool parse_number(const char *text, const char **end, unsigned long max, unsigned long *value)
{
	unsigned long result = 0;
	const char *c = text;

	for (; *c >= '0' && *c <= '9'; c++) {
		unsigned long digit = (unsigned long)(*c - '0');
		if (result > (max - digit) / 10)
			return false;
		result = result * 10 + digit;
	}
	*end = c;
	*value = result;
	return c > text;
}

static bool parse_ids(void)
{
	const char *rest;

	return parse_number(arg.ids, &rest, UINT32_MAX - 1, &arg.first) && *rest == ':' &&
	       parse_number(rest + 1, &rest, UINT32_MAX - 1, &arg.count) && *rest == '\0' &&
	       arg.first + arg.count <= UINT32_MAX - 1 && (arg.first == 0) == (arg.count == 0);
}

static void parse_arguments(int argc, char **argv)
{
	static const struct {
		const char *option;
		const char **value;
	} options[] = {
		{ "--store", &arg.store }, { "--run", &arg.run },   { "--lxc", &arg.lxc },
		{ "--name", &arg.name },   { "--base", &arg.base }, { "--ids", &arg.ids },
	};
	const int count = sizeof(options) / sizeof(options[0]);
	const char *usage = "the hook's line in the container's configuration is damaged";
	const char *fix = "remove the container and create it again";

	if (argc != 1 + 2 * count + 3)
		refuse("usage", fix, "%s: %d words", usage, argc);
	for (int place = 0; place < count; place++) {
		if (strcmp(argv[1 + 2 * place], options[place].option) != 0)
			refuse("usage", fix, "%s: no %s", usage, options[place].option);
		*options[place].value = argv[2 + 2 * place];
	}
	if (arg.store[0] != '/' || arg.run[0] != '/' || arg.lxc[0] != '/') {
		arg.name = NULL;
		refuse("usage", fix, "%s: a path is not absolute", usage);
	}
	if (!is_name(arg.name) || !is_name(arg.base) || !parse_ids()) {
		arg.name = NULL; /* it must not become a file's name */
		refuse("usage", fix, "%s: name, base or ids", usage);
	}
}

static void make_directory(int dir, const char *name, mode_t mode)
{
	if (mkdirat(dir, name, 0700) == 0) {
		if (fchmodat(dir, name, mode, 0) < 0) /* whatever the umask is */
			fail("cannot set the mode of %s in %s", name, arg.run);
	} else if (errno != EEXIST) {
		fail("cannot make %s in %s", name, arg.run);
	}
}

/* RUN is empty after a boot, and lxc-autostart may be the first who needs it. */
static void open_run(void)
{
	if (mkdir(arg.run, 0700) == 0) {
		if (chmod(arg.run, 0711) < 0)
			fail("cannot set the mode of %s", arg.run);
	} else if (errno != EEXIST) {
		fail("cannot make %s", arg.run);
	}
	run_fd = open(arg.run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (run_fd < 0)
		fail("cannot open %s", arg.run);
	make_directory(run_fd, "hook", 0700);
	make_directory(run_fd, "lock", 0700);
	make_directory(run_fd, "lease", 0700);
	make_directory(run_fd, "lower", 0755);
	make_directory(run_fd, "overlay", 0755);
}

static void check_identity(char **from_lxc)
{
	const char *fix = "copies of a container cannot run: remove it and use oneroot create";
	const char *declared = arg.name, *name = getenv("LXC_NAME"), *config = getenv("LXC_CONFIG_FILE");
	char expected[PATH_MAX];
	struct stat given, own;

	if (!name || !config)
		refuse("usage", "use lxc-start", "not run by LXC: LXC_NAME or LXC_CONFIG_FILE is not set");
	if (strcmp(name, declared) != 0 || strcmp(from_lxc[0], declared) != 0) {
		arg.name = is_name(name) ? name : NULL; /* the reason belongs to the copy */
		refuse("refused", fix, "the container %s is a copy of %s", name, declared);
	}
	if (strcmp(from_lxc[1], "lxc") != 0 || strcmp(from_lxc[2], "pre-start") != 0)
		refuse("usage", fix, "not run as a pre-start hook");
	if (snprintf(expected, sizeof(expected), "%s/%s/config", arg.lxc, declared) >= (int)sizeof(expected))
		refuse("usage", fix, "the LXC path is too long");
	if (lstat(expected, &own) < 0)
		fail("cannot read %s", expected);
	if (stat(config, &given) < 0)
		fail("cannot read %s", config);
	if (!S_ISREG(own.st_mode) || given.st_dev != own.st_dev || given.st_ino != own.st_ino)
		refuse("refused", fix, "started with the configuration %s instead of %s", config, expected);
}

static void check_namespace(void)
{
	struct stat host, own;

	if (stat("/proc/1/ns/mnt", &host) < 0 || stat("/proc/self/ns/mnt", &own) < 0)
		fail("cannot read the mount namespaces");
	if (host.st_dev == own.st_dev && host.st_ino == own.st_ino)
		refuse("refused", "put lxc.monitor.unshare = 1 back into the container's configuration",
		       "this is the host's mount namespace, where nothing is mounted for a container");
}

/* Read a whole small file of /proc or of ours; -1 if there is none. */
static ssize_t read_file_at(int dir, const char *path, char *buffer, size_t size)
{
	int fd = openat(dir, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t length = read(fd, buffer, size - 1);
	close(fd);
	if (length >= 0)
		buffer[length] = '\0';
	return length;
}

/* Start time and parent of a process; false if there is no such process. */
static bool read_stat(unsigned long pid, unsigned long *start, unsigned long *parent, char comm[64])
{
	char path[64], text[1024];

	snprintf(path, sizeof(path), "/proc/%lu/stat", pid);
	if (read_file_at(AT_FDCWD, path, text, sizeof(text)) <= 0)
		return false;
	char *open = strchr(text, '('), *close = strrchr(text, ')');
	if (!open || !close || close < open)
		return false;
	snprintf(comm, 64, "%.*s", (int)(close - open - 1), open + 1);
	/* proc(5): after the name come state (3), ppid (4), then 17 fields up to starttime (22) */
	return sscanf(close + 1,
		      " %*c %lu %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %lu",
		      parent, start) == 2;
}

/* LXC runs hooks by sh -c "exec …"; a shell that does not replace itself stands between. */
static unsigned long find_monitor(unsigned long *start)
{
	unsigned long pid = (unsigned long)getppid(), parent = 0;
	char comm[64] = "";

	for (int level = 0; level < 3; level++) {
		if (pid <= 1 || !read_stat(pid, start, &parent, comm))
			break;
		if (strcmp(comm, "sh") != 0 && strcmp(comm, "dash") != 0 && strcmp(comm, "bash") != 0)
			return pid;
		pid = parent;
	}
	refuse("failed", "start the container again", "the LXC monitor that ran the hook is gone");
}

static bool lock_whole_file(int fd, short type, int patience_ms)
{
	struct flock whole = { .l_type = type, .l_whence = SEEK_SET };
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };

	for (int waited = 0;; waited += POLL_MS) {
		if (fcntl(fd, F_OFD_SETLK, &whole) == 0)
			return true;
		if (errno != EAGAIN && errno != EACCES && errno != EINTR)
			fail("cannot lock in %s/lock", arg.run);
		if (waited >= patience_ms)
			return false;
		nanosleep(&pause, NULL);
	}
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

/* Copy the value of a string member of a JSON object that oneroot wrote; false if it has none. */
static bool json_string(const char *json, const char *key, char *value, size_t size)
{
	char pattern[64];

	snprintf(pattern, sizeof(pattern), "\"%s\": \"", key);
	const char *found = strstr(json, pattern);
	if (!found)
		return false;
	found += strlen(pattern);
	size_t length = strcspn(found, "\"\\");
	snprintf(value, size, "%.*s", (int)length, found);
	return found[length] == '"' && length < size;
}

static bool json_number(const char *json, const char *key, unsigned long *value)
{
	char pattern[64];
	const char *end;

	snprintf(pattern, sizeof(pattern), "\"%s\": ", key);
	const char *found = strstr(json, pattern);
	return found && parse_number(found + strlen(pattern), &end, ULONG_MAX / 16, value);
}

static void utc_now(char text[32])
{
	time_t now = time(NULL);
	struct tm parts;

	if (!gmtime_r(&now, &parts) || strftime(text, 32, "%Y-%m-%dT%H:%M:%S+00:00", &parts) == 0)
		fail("cannot tell the time");
}

/* Returns with the lock held, by us until we exit, or by the one who started us. */
static void take_container_lock(void)
{
	const char *token = getenv("ONEROOT_LOCK_TOKEN");
	char text[4096], value[64], verb[128] = "?", since[64] = "?", now[32];
	unsigned long pid = 0;
	int fd = open_lock("container", arg.name); /* stays open: it is released when we exit */

	for (int waited = 0;; waited += POLL_MS) {
		if (lock_whole_file(fd, F_WRLCK, 0))
			break;
		ssize_t length = pread(fd, text, sizeof(text) - 1, 0);
		text[length < 0 ? 0 : length] = '\0';
		if (token && strlen(token) == 32 && json_string(text, "token", value, sizeof(value)) &&
		    strcmp(value, token) == 0)
			return;
		if (waited >= LOCK_WAIT_MS) {
			json_string(text, "verb", verb, sizeof(verb));
			json_string(text, "since", since, sizeof(since));
			json_number(text, "pid", &pid);
			refuse("busy", "wait until that has ended, then start it again",
			       "the container %s is busy: process %lu does “%s” since %s", arg.name, pid, verb, since);
		}
		nanosleep(&(struct timespec){ .tv_nsec = POLL_MS * 1000000L }, NULL);
	}
	utc_now(now);
	int length = snprintf(text, sizeof(text),
			      "{\"pid\": %d, \"person\": \"lxc-start\", \"verb\": \"start\", "
			      "\"since\": \"%s\", \"token\": \"start-hook\"}", (int)getpid(), now);
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)length, 0) != length)
		fail("cannot write into the lock of %s", arg.name);
}

/* Does a process of an earlier run still hold this container's overlay? One container's payload
 * cgroup is lxc.payload.NAME, or with -1 … behind it where an empty one was left. */
static bool payload_alive(void)
{
	static const char *const mounts[] = { "", "unified/", "pids/", "systemd/", "freezer/" };
	char path[PATH_MAX], text[4096], upper[PATH_MAX];
	unsigned long pid;

	snprintf(upper, sizeof(upper), ",upperdir=%s/overlay/upper,", arg.run);
	for (size_t place = 0; place < sizeof(mounts) / sizeof(mounts[0]) * 4; place++) {
		char suffix[8] = "";
		if (place % 4)
			snprintf(suffix, sizeof(suffix), "-%zu", place % 4);
		snprintf(path, sizeof(path), "/sys/fs/cgroup/%slxc.payload.%s%s/cgroup.procs", mounts[place / 4],
			 arg.name, suffix);
		const char *rest = text;
		if (read_file_at(AT_FDCWD, path, text, sizeof(text)) <= 0)
			continue;
		while (parse_number(rest, &rest, INT_MAX, &pid) && *rest == '\n') {
			char table[65536];
			rest++;
			snprintf(path, sizeof(path), "/proc/%lu/mountinfo", pid);
			/* its root is among the first mounts; a container of this name on another LXC path has another */
			if (read_file_at(AT_FDCWD, path, table, sizeof(table)) > 0 && strstr(table, upper))
				return true;
		}
	}
	return false;
}

static void read_boot_id(char boot[64])
{
	if (read_file_at(AT_FDCWD, "/proc/sys/kernel/random/boot_id", boot, 64) < 36)
		fail("cannot read the id of this boot");
	boot[36] = '\0';
}

/* The kernel does not refuse a second mount of one upper (index=off): this does. */
static void check_earlier_run(unsigned long monitor, unsigned long monitor_start, const char *boot)
{
	char path[NAME_MAX + 1], text[4096], comm[64], lease_boot[64] = "";
	unsigned long pid, start, now, parent;

	snprintf(path, sizeof(path), "lease/%s", arg.name);
	if (read_file_at(run_fd, path, text, sizeof(text)) < 0) {
		if (errno == ENOENT)
			return;
		fail("cannot read the lease of %s", arg.name);
	}
	if (!json_number(text, "monitor", &pid) || !json_number(text, "monitor_start", &start) ||
	    !json_string(text, "boot_id", lease_boot, sizeof(lease_boot)))
		pid = start = 0; /* damaged: believe the processes alone */
	else if (strcmp(lease_boot, boot) != 0)
		return;
	else if (pid == monitor && start == monitor_start)
		return; /* a reboot: LXC has seen the end of the former init, and with it of all its processes */
	else if (read_stat(pid, &now, &parent, comm) && now == start)
		refuse("refused", "oneroot stop it first", "the container %s runs already, its monitor is process %lu",
		       arg.name, pid);
	for (int waited = 0; payload_alive(); waited += POLL_MS) {
		if (waited >= LEFTOVER_WAIT_MS)
			refuse("refused", "find them by their cgroup, lxc.payload.NAME, and end them",
			       "processes of an earlier run of %s still use its files", arg.name);
		nanosleep(&(struct timespec){ .tv_nsec = POLL_MS * 1000000L }, NULL);
	}
}

/* Returns a descriptor of the root of the current generation, and its number. */
static int open_generation(unsigned long *number)
{
	char path[PATH_MAX], target[128];
	const char *rest;
	struct stat status;
	const int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

	snprintf(path, sizeof(path), "%s/bases/%s", arg.store, arg.base);
	int base = open(path, flags);
	if (base < 0)
		refuse("refused", "oneroot base ls", "there is no base %s: %m", arg.base);
	ssize_t length = readlinkat(base, "current", target, sizeof(target) - 1);
	if (length < 0)
		refuse("refused", "oneroot base fsck", "the base %s has no current generation: %m", arg.base);
	target[length] = '\0';
	if (strncmp(target, "generations/", 12) != 0 || !parse_number(target + 12, &rest, INT_MAX, number) || *rest)
		refuse("refused", "oneroot base fsck", "the current generation of %s is %s", arg.base, target);
	snprintf(path, sizeof(path), "%s/generation.json", target);
	if (fstatat(base, path, &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(status.st_mode))
		refuse("refused", "oneroot base fsck", "generation %lu of %s is missing or incomplete", *number, arg.base);
	snprintf(path, sizeof(path), "%s/root", target);
	int root = openat(base, path, flags);
	if (root < 0)
		refuse("refused", "oneroot base fsck", "generation %lu of %s has no root: %m", *number, arg.base);
	close(base);
	return root;
}

static int open_overlay(void)
{
	char path[PATH_MAX];
	struct stat status;
	const int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	const char *fix = "oneroot create makes what is missing";

	snprintf(path, sizeof(path), "%s/%s/oneroot.json", arg.lxc, arg.name);
	if (lstat(path, &status) < 0 || !S_ISREG(status.st_mode))
		refuse("refused", fix, "the container %s has no declaration, %s", arg.name, path);
	snprintf(path, sizeof(path), "%s/%s/overlay", arg.lxc, arg.name);
	int overlay = open(path, flags);
	if (overlay < 0)
		refuse("refused", fix, "the container %s has no overlay directory: %m", arg.name);
	if (fstatat(overlay, "work", &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(status.st_mode))
		refuse("refused", fix, "the container %s has no work directory", arg.name);
	if (fstatat(overlay, "upper", &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(status.st_mode))
		refuse("refused", fix, "the container %s has no upper", arg.name);
	/* its root may give / to another user of its own; nobody gives it to one of another range */
	if (arg.count && (status.st_uid < arg.first || status.st_uid - arg.first >= arg.count))
		refuse("refused", "oneroot info shows its id range", "the upper of %s belongs to uid %u, not to its ids %s",
		       arg.name, status.st_uid, arg.ids);
	return overlay;
}

static void write_map(pid_t pid, const char *which)
{
	char path[64], text[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, which);
	int length = snprintf(text, sizeof(text), "0 %lu %lu\n", arg.first, arg.count);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)length) != length)
		fail("cannot map the ids %s", arg.ids);
	close(fd);
}

/* Returns a descriptor of a user namespace that maps 0 … COUNT-1 to FIRST …; it lives as long as that. */
static int make_user_namespace(void)
{
	char path[64];
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);

	if (child < 0)
		fail("the kernel refuses a user namespace");
	if (child == 0)
		for (;;)
			pause();
	write_map(child, "uid_map");
	write_map(child, "gid_map");
	snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)child);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("cannot open the user namespace");
	kill(child, SIGKILL);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	return fd;
}

/* After a reboot the former mounts are still here. */
static void detach(const char *target)
{
	for (int layer = 0; layer < 64; layer++)
		if (umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW) < 0) {
			if (errno == EINVAL)
				return; /* no mount */
			fail("cannot unmount %s", target);
		}
	refuse("failed", SEE_DOCTOR, "too many mounts on %s", target);
}

static void show(int tree, const char *directory, uint64_t flags, int user_namespace)
{
	char target[PATH_MAX];
	struct mount_attr attributes = { .attr_set = flags | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
					 .propagation = MS_PRIVATE };

	if (snprintf(target, sizeof(target), "%s/%s", arg.run, directory) >= (int)sizeof(target))
		refuse("usage", SEE_DOCTOR, "the run path is too long");
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
	close(mount);
	close(tree);
}

static void write_lease(unsigned long generation, const char *boot, unsigned long monitor, unsigned long start)
{
	char text[1024], now[32];

	utc_now(now);
	snprintf(text, sizeof(text),
		 "{\"schema\": 1, \"container\": \"%s\", \"base\": \"%s\", \"generation\": %lu, \"boot_id\": \"%s\", "
		 "\"monitor\": %lu, \"monitor_start\": %lu, \"taken\": \"%s\"}\n",
		 arg.name, arg.base, generation, boot, monitor, start, now);
	int dir = openat(run_fd, "lease", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir < 0 || write_file_at(dir, arg.name, text) < 0)
		fail("cannot write the lease of %s", arg.name);
	close(dir);
}

int main(int argc, char **argv)
{
	unsigned long generation, monitor, monitor_start = 0;
	char boot[64], error[NAME_MAX + 1];

	umask(077);
	parse_arguments(argc, argv);
	open_run();
	check_identity(argv + argc - 3);
	check_namespace();
	monitor = find_monitor(&monitor_start);
	read_boot_id(boot);
	take_container_lock();
	check_earlier_run(monitor, monitor_start, boot);
	if (!lock_whole_file(open_lock("mount", arg.base), F_RDLCK, COLLECTOR_WAIT_MS))
		refuse("busy", "start it again when that has ended", "old generations of %s are being removed", arg.base);
	int root = open_generation(&generation);
	int overlay = open_overlay();
	int users = arg.count ? make_user_namespace() : -1;
	show(root, "lower", MOUNT_ATTR_RDONLY, users);
	show(overlay, "overlay", 0, -1);
	write_lease(generation, boot, monitor, monitor_start);
	snprintf(error, sizeof(error), "hook/%s.error", arg.name);
	if (unlinkat(run_fd, error, 0) < 0 && errno != ENOENT)
		fprintf(stderr, "oneroot start-hook: %s stays: %m\n", error);
	return 0;
}

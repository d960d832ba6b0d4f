/* What a relay cannot live with in mini_httpd 1.30, mended by a library that is loaded before it:
 *
 *     cc -shared -fPIC -o mini_httpd.so mini_httpd.c
 *     LD_PRELOAD=./mini_httpd.so mini_httpd -D -C mini_httpd.conf
 *
 * The environment of CGI programs is mini_httpd's own, so they are started without this library. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int error_log = -1;
static int written = -1;

__attribute__((constructor)) static void keep_stderr(void)
{
    error_log = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100);
}

ssize_t write(int fd, const void *data, size_t size)
{
    written = fd;
    return syscall(SYS_write, fd, data, size);
}

/* When the body of a POST arrives together with its header, a process of its own feeds it to the CGI program and then shuts
 * the connection down, as every process of mini_httpd does at its end: nobody gets the answer. That process is the one that
 * has written nothing to the connection. It just ends. */
int shutdown(int fd, int how)
{
    if (fd != written)
        _exit(0);
    return syscall(SYS_shutdown, fd, how);
}

/* TCP_CORK, set once and never taken back, holds every event of a stream for 0.2 s. */
int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    if (level == IPPROTO_TCP && name == TCP_CORK)
        return 0;
    return syscall(SYS_setsockopt, fd, level, name, value, size);
}

/* A CGI program inherits an alarm that ends it after 300 s, and its stderr goes to the client, in the middle of the answer. */
int execve(const char *path, char *const argv[], char *const environment[])
{
    alarm(0);
    dup2(error_log, STDERR_FILENO);
    return syscall(SYS_execve, path, argv, environment);
}

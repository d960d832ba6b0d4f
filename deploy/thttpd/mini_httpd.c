/* Two faults of mini_httpd 1.30 that a relay cannot live with, mended by a library that is loaded before it:
 *
 *     cc -shared -fPIC -o mini_httpd.so mini_httpd.c
 *     LD_PRELOAD=./mini_httpd.so mini_httpd -D -C thttpd.conf
 *
 * The environment of CGI programs is mini_httpd's own, so none of this reaches them. thttpd has neither fault. */

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int written = -1;

ssize_t write(int fd, const void *data, size_t size)
{
    written = fd;
    return syscall(SYS_write, fd, data, size);
}

/* When the body of a POST arrives together with its header, a process of its own feeds it to the CGI program, and then shuts
 * the connection down, as every process of mini_httpd does at its end: before the program could answer. That process is the
 * one that has written nothing to the connection; it just ends. */
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

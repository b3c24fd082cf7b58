// live555's proxy of one camera, for live555_proxy.py. Arguments: the camera's URL, the port to listen at.

#include <BasicUsageEnvironment.hh>
#include <GroupsockHelper.hh>
#include <liveMedia.hh>

#include <arpa/inet.h>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

int main(int count, char **arguments) {
  if (count != 3) return 2;
  int const port = atoi(arguments[2]);
  // As in live555's own program: its frames are larger than the default allows.
  OutPacketBuffer::maxSize = 2000000;
  ReceivingInterfaceAddr = inet_addr("127.0.0.1");
  UsageEnvironment *environment = BasicUsageEnvironment::createNew(*BasicTaskScheduler::createNew());
  RTSPServer *server = RTSPServer::createNew(*environment, port);
  if (server == nullptr) {
    fprintf(stderr, "live555: %s\n", environment->getResultMsg());
    return 1;
  }
  // The port ~0 asks the camera for interleaved packets.
  server->addServerMediaSession(ProxyServerMediaSession::createNew(
      *environment, server, arguments[1], "cam", nullptr, nullptr, static_cast<portNumBits>(~0)));
  printf("live555=rtsp://127.0.0.1:%d/cam,%d\n", port, static_cast<int>(getpid()));
  fflush(stdout);
  environment->taskScheduler().doEventLoop();
}

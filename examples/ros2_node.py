"""A ROS 2 node over the same loop: images in on `image`, captions out on `caption` as JSON in a String.

    python examples/ros2_node.py --ros-args -r image:=/camera/image_raw -p looks_per_second:=2.0

It needs a ROS 2 installation (rclpy, sensor_msgs, std_msgs), which is no package of PyPI. It takes rgb8 and
bgr8 images, and was checked against a stand-in for rclpy, not on a robot.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String

from tellapart import Captioner, DecodeOptions, LiveCaptions, LiveOptions, TellapartError


class CaptionNode(Node):  # type: ignore[misc]  # rclpy carries no types
    """Publishes a caption whenever the scene is a new one."""

    def __init__(self, model: str | None = None) -> None:
        """Open the model, subscribe, and start the thread that captions."""
        super().__init__("tellapart")
        looks_per_second = self.declare_parameter("looks_per_second", 2.0).value
        deadline_ms = self.declare_parameter("deadline_ms", 400.0).value
        self._publisher = self.create_publisher(String, "caption", 10)
        self._incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._captioner = Captioner.open(model)
        # `get` hands over what arrives; the loop keeps only the latest, so the queue stays short.
        self._live = LiveCaptions(
            self._captioner,
            self._incoming.get,
            options=LiveOptions(
                look_every_s=1.0 / looks_per_second,
                deadline_ms=deadline_ms,
                stall_s=None,
                decode=DecodeOptions(beams=1),
            ),
        )
        self.create_subscription(Image, "image", self._on_image, 1)
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def destroy_node(self) -> None:
        """End the loop before the node."""
        self._incoming.put(None)
        self._live.close()
        self._thread.join()
        self._captioner.close()
        super().destroy_node()

    def _on_image(self, message: Any) -> None:
        if message.encoding not in ("rgb8", "bgr8"):
            self.get_logger().error(f"expected rgb8 or bgr8 images, got {message.encoding}")
            return
        rows = np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.step)
        pixels = rows[:, : message.width * 3].reshape(message.height, message.width, 3)
        self._incoming.put(pixels if message.encoding == "rgb8" else pixels[..., ::-1])

    def _publish(self) -> None:
        try:
            for result in self._live:
                if result.caption is not None:
                    self._publisher.publish(String(data=json.dumps(result.to_record())))
                elif result.error is not None:
                    self.get_logger().warning(str(result.error))
        except TellapartError as error:
            self.get_logger().fatal(str(error))


def main() -> int:
    """Run the node until Ctrl-C."""
    rclpy.init()
    node = CaptionNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

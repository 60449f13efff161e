"""Looking into trained models: loss landscapes, curvature, parameter drift, similarity of representations."""
